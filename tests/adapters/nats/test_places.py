"""What is made at the server, what is adopted, and what is left as it is."""

import json
import shlex
from typing import Any

import pytest

from brokerkit.adapter import Describes, Order, Start
from brokerkit.adapters.nats import NatsAdapter
from brokerkit.adapters.nats.client import BrokerClient
from brokerkit.errors import ConfigurationError, NotFound, Unsupported
from brokerkit.message import Address, Message
from tests.adapters.nats.conftest import Connect
from tests.adapters.nats.members import bodies, inlet, join, send
from tests.servers import RealServer

Places = list[tuple[Address, Start, Order]]


async def test_the_streams_are_made_safe(connect: Connect, channel: str) -> None:
    adapter = await connect(partitions=3, retention=3600, dead_retention=7200)
    await adapter.provision(
        [(inlet(channel), "earliest", "none"), (Address(channel, "g", "dead"), "earliest", "none")],
        create=True,
    )
    found: list[dict[str, Any]] = []
    for place in ("", "--inlet", "--dead"):
        info = await adapter.api.stream(channel + place)
        assert info is not None
        found.append(info["config"])
    assert [each["retention"] for each in found] == ["limits", "workqueue", "limits"]
    assert [each.get("max_age", 0) // 10**9 for each in found] == [3600, 0, 7200]
    assert [each["storage"] for each in found] == ["file"] * 3
    assert found[0]["subjects"] == [f"{channel}.p{index}" for index in range(3)]
    info = await adapter.api.consumer(channel, "g")
    assert info is not None
    config = info["config"]
    assert (config["ack_policy"], config["max_deliver"], config["max_ack_pending"]) == ("explicit", -1, -1)
    assert "backoff" not in config


async def test_the_number_of_partitions_is_the_channel_s_whatever_a_publisher_says(
    connect: Connect, channel: str
) -> None:
    first = await connect(partitions=3)
    await send(first, Address(channel), "1")
    second = await connect(partitions=16)
    await send(second, Address(channel), *map(str, range(50)))
    found = await second.places.channel(channel)
    assert len(found.subjects) == 3
    member = await join(second, inlet(channel), order="key")
    assert len(await member.take(51, ack=True)) == 51


async def test_a_group_keeps_its_order_mode(connect: Connect, channel: str) -> None:
    adapter = await connect()
    await join(adapter, inlet(channel, "a"), order="none")
    await join(adapter, inlet(channel, "b"), order="key")
    with pytest.raises(ConfigurationError, match="order='none'"):
        await join(adapter, inlet(channel, "a"), order="key")
    with pytest.raises(ConfigurationError, match="order='key'"):
        await join(adapter, inlet(channel, "b"), order="none")
    await join(adapter, Address(channel, "b", "dead"))


async def test_a_server_that_is_too_old_is_refused_in_words(
    nats_server: RealServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BrokerClient, "told_version", "2.9.25")
    adapter = NatsAdapter(nats_server.url)
    with pytest.raises(Unsupported, match=r"is NATS 2\.9\.25; brokerkit needs 2\.10"):
        await adapter.connect()
    assert not adapter.link.up


async def test_a_server_that_cannot_keep_the_order_of_a_group_over_processes_is_warned_of(
    connect: Connect, channel: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(BrokerClient, "told_version", "2.10.29")
    adapter = await connect()
    assert "order-in-one-process" in adapter.capabilities.limits
    await join(adapter, inlet(channel, "a"), order="none")
    assert not caplog.records
    await join(adapter, inlet(channel, "b"), order="key")
    assert "NATS 2.10.29, which has no pinned consumers" in caplog.text


async def test_a_lease_of_another_length_is_written_to_the_consumer(connect: Connect, channel: str) -> None:
    await join(await connect(lease=5), inlet(channel))
    adapter = await connect(lease=9)
    await join(adapter, inlet(channel))
    info = await adapter.api.consumer(channel, "g")
    assert info is not None
    assert info["config"]["ack_wait"] == 9 * 10**9


@pytest.mark.parametrize(
    "change", [{"ack_policy": "none"}, {"backoff": [10**9]}, {"deliver_subject": "somewhere"}]
)
async def test_a_consumer_that_would_lose_or_delay_is_refused(
    connect: Connect, channel: str, change: dict[str, Any]
) -> None:
    adapter = await connect()
    await send(adapter, Address(channel), "1")
    config = {"durable_name": "g", "ack_policy": "explicit", "max_deliver": 5, **change}
    await adapter.api.create_consumer(channel, config)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        await join(adapter, inlet(channel))


async def test_a_stream_of_somebody_else_s_on_our_name_or_subjects_is_refused(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    await adapter.api.create_stream({"name": channel, "subjects": [f"theirs-{channel}"]})
    await adapter.api.create_stream({"name": f"{channel}x", "subjects": [f"{channel}y.>"]})
    for name, words in ((channel, "native="), (f"{channel}y", "native=")):
        (outcome,) = await adapter.send(Address(name), [Message(body=b"1")])
        assert outcome is not None
        assert words in str(outcome)


async def test_what_is_adopted_is_used_and_left_as_it_is(connect: Connect, channel: str) -> None:
    owner = await connect()
    stream = {"name": f"THEIRS-{channel}", "subjects": [f"their.{channel}.>"], "max_msgs": 1000}
    made = await owner.api.create_stream(stream)
    durable = {"durable_name": "BILLING", "ack_policy": "explicit", "ack_wait": 5 * 10**9, "max_deliver": -1}
    had = await owner.api.create_consumer(stream["name"], durable)  # type: ignore[arg-type]
    native = {channel: f"their.{channel}.orders", f"{channel}/g": "BILLING"}
    adapter = await connect(native=native)
    member = await join(adapter, inlet(channel))
    await send(adapter, Address(channel), "1", key="k")
    await send(adapter, inlet(channel), "copy")
    assert sorted(bodies(await member.take(2, ack=True))) == ["1", "copy"]
    other = await join(adapter, inlet(channel, "keyed"), order="key")
    assert bodies(await other.take(1, ack=True)) == ["1"]
    assert ("g" in {group for name, group in await adapter.groups() if name == channel}) is False
    assert (channel, "keyed") in await adapter.groups()
    page, _ = await adapter.browse(Address(channel), cursor=None, limit=10)
    assert bodies(page) == ["1"]
    now = await owner.api.stream(f"THEIRS-{channel}")
    then = await owner.api.consumer(f"THEIRS-{channel}", "BILLING")
    assert now is not None
    assert then is not None
    assert (now["config"], then["config"]) == (made["config"], had["config"])
    assert await owner.api.stream(channel) is None


async def test_adopting_what_is_not_there_is_not_found_and_makes_nothing(
    connect: Connect, channel: str
) -> None:
    adapter = await connect(native={channel: f"nobody.{channel}"})
    with pytest.raises(NotFound, match=f"nobody.{channel}"):
        await join(adapter, inlet(channel))
    (outcome,) = await adapter.send(Address(channel), [Message(body=b"1")])
    assert isinstance(outcome, NotFound)


async def test_a_wildcard_can_be_read_and_not_be_sent_to(connect: Connect, channel: str) -> None:
    owner = await connect()
    await owner.api.create_stream({"name": f"W-{channel}", "subjects": [f"wild.{channel}.>"]})
    adapter = await connect(native={channel: f"wild.{channel}.>"})
    (outcome,) = await adapter.send(Address(channel), [Message(body=b"1")])
    assert isinstance(outcome, NotFound)
    client: Any = owner.link._client
    await client.publish(f"wild.{channel}.a.b", b"raw")
    member = await join(adapter, inlet(channel))
    assert bodies(await member.take(1, ack=True)) == ["raw"]


async def test_dead_letters_that_are_done_leave_the_stream(connect: Connect, channel: str) -> None:
    adapter = await connect()
    dead = Address(channel, "g", "dead")
    await send(adapter, dead, "1", "2", "3")
    letters = await join(adapter, dead)
    taken = await letters.take(3)
    await adapter.api.delete_message(f"{channel}--dead", 2)  # by somebody else
    await letters.ack(taken[:2])
    info = await adapter.api.stream(f"{channel}--dead")
    assert info is not None
    assert info["state"]["messages"] == 1
    await letters.subscription.close()
    assert bodies(await (await join(adapter, dead)).take(1, ack=True)) == ["3"]


async def test_copies_that_are_done_leave_the_stream(connect: Connect, channel: str) -> None:
    adapter = await connect()
    member = await join(adapter, inlet(channel))
    await send(adapter, inlet(channel), "1", "2")
    await member.take(2, ack=True)
    info = await adapter.api.stream(f"{channel}--inlet")
    assert info is not None
    assert info["state"]["messages"] == 0


def configs_in(commands: list[str]) -> list[dict[str, Any]]:
    return [json.loads(shlex.split(command)[1]) for command in commands]


async def test_the_commands_for_an_operator_make_what_provisioning_makes(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    places: Places = [
        (inlet(channel, "a"), "latest", "none"),
        (inlet(channel, "b"), "earliest", "key"),
        (Address(channel, "a", "dead"), "earliest", "none"),
    ]
    assert isinstance(adapter, Describes)
    commands = list(NatsAdapter("nats://nowhere:1").commands(places))
    assert len(commands) == len(set(commands)) == 3 + 2 + 9 + 1
    for command, config in zip(commands, configs_in(commands), strict=True):
        if " stream add " in command:
            await adapter.api.create_stream(config)
        else:
            stream = command.split(" consumer add ")[1].split()[0]
            await adapter.api.create_consumer(stream, config)
    assert await adapter.provision(places, create=False) == []
    await send(adapter, Address(channel), "1")
    assert bodies(await (await join(adapter, inlet(channel, "b"), order="key")).take(1, ack=True)) == ["1"]
