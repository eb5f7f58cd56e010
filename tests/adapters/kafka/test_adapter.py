"""What the adapter makes of a cluster's answers, over a fake one."""

import pytest

from brokerkit.adapter import Start
from brokerkit.adapters.kafka import KafkaAdapter
from brokerkit.adapters.kafka.client import Committed
from brokerkit.adapters.kafka.names import RUNGS, Names
from brokerkit.errors import ConfigurationError, ConnectionLost, NotFound
from tests.adapters.kafka.fake import AT, FakeAdmin, FakeClient, FakeProducer
from tests.adapters.kafka.kit import text
from tests.adapters.kafka.virtual import in_virtual_time


async def connected(client: FakeClient) -> KafkaAdapter:
    adapter = KafkaAdapter("kafka://h", client=client)
    await adapter.connect()
    return adapter


def rung(seconds: int) -> str:
    assert seconds in RUNGS
    return Names(None).rung(AT, seconds)


@pytest.mark.parametrize("trouble", [ConnectionLost("silent"), ConfigurationError("not allowed")])
@in_virtual_time
async def test_a_topic_that_cannot_be_asked_for_takes_no_confirmation_from_its_neighbours(
    trouble: Exception,
) -> None:
    """Who sends a confirmed copy again makes two of it."""
    admin = FakeAdmin()
    client = FakeClient(admin, the_producer=FakeProducer({rung(600): NotFound("no metadata")}))
    adapter = await connected(client)
    await adapter._topics.ensure(AT)
    await adapter._topics.check_ladder(AT)
    admin.silent = trouble
    sent = await adapter.send(AT, [text("a"), text("b"), text("c")], after=[5, 600, 0])
    assert [type(outcome) for outcome in sent] == [type(None), ConnectionLost, type(None)]
    await adapter.close()


@in_virtual_time
async def test_a_topic_that_the_cluster_does_not_know_is_not_found_and_harms_no_neighbour() -> None:
    admin = FakeAdmin()
    client = FakeClient(admin, the_producer=FakeProducer({rung(600): NotFound("gone")}))
    adapter = await connected(client)
    await adapter._topics.ensure(AT)
    await adapter._topics.check_ladder(AT)
    del admin.topics[rung(600)]
    sent = await adapter.send(AT, [text("a"), text("b")], after=[5, 600])
    assert [type(outcome) for outcome in sent] == [type(None), NotFound]
    await adapter.close()


@pytest.mark.parametrize("start", ["earliest", "latest"])
@in_virtual_time
async def test_who_comes_late_overwrites_nothing_of_a_member_that_has_come_and_gone_meanwhile(
    start: Start,
) -> None:
    """With "latest" what came between would be skipped, with "earliest" all would come again."""
    admin = FakeAdmin()
    adapter = await connected(FakeClient(admin))
    admin.topics = dict.fromkeys(adapter._plan.of(AT), 6)
    theirs = {(Names(None).channel("c"), index): Committed(4, "bk1 drained") for index in range(6)}

    async def another_member() -> None:
        await admin.found("c--g", theirs)

    admin.on_look = another_member
    await adapter.provision([(AT, start, "none")], create=True)
    assert admin.offsets == {"c--g": theirs}
    await adapter.close()


@in_virtual_time
async def test_a_group_of_a_channel_that_is_made_for_it_begins_at_its_beginning() -> None:
    admin = FakeAdmin()
    adapter = await connected(FakeClient(admin))
    await adapter.provision([(AT, "earliest", "none")], create=True)
    assert {offset for offset, _ in admin.offsets["c--g"].values()} == {0}
    assert {topic for topic, _ in admin.offsets["c--g"]} == set(adapter._plan.of(AT))
    await adapter.close()


@in_virtual_time
async def test_retry_topics_have_as_many_partitions_as_the_broker_has_given_the_channel() -> None:
    admin = FakeAdmin(broker_partitions=2)
    adapter = KafkaAdapter("kafka://h?partitions=-1", client=FakeClient(admin))
    await adapter.connect()
    await adapter.provision([(AT, "earliest", "none")], create=True)
    assert admin.topics == dict.fromkeys(adapter._plan.of(AT), 2)
    await adapter.close()
