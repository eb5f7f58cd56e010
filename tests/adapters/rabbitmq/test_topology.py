"""The plans: what is declared, version by version, and what an operator would run."""

import json
import shlex

import pytest

from brokerkit.adapter import Order
from brokerkit.adapters.rabbitmq import RabbitAdapter
from brokerkit.adapters.rabbitmq.names import RUNGS
from brokerkit.adapters.rabbitmq.topology import Plan, Topology
from brokerkit.message import Address

AT = Address("orders", "billing", "inlet")
OLD, NEW, NEWEST = (3, 10), (4, 0), (4, 3)


def whole(version: tuple[int, int], order: Order = "none", adopted: dict[str, str] | None = None) -> Plan:
    topology = Topology(adopted or {}, max_unrouted=100)
    return (
        topology.channel("orders", version)
        + topology.inlet(AT, order, 4, version, split=order == "key")
        + topology.ladder(AT, version)
        + topology.dead(AT, version)
    )


@pytest.mark.parametrize("order", ["none", "key"])
@pytest.mark.parametrize("version", [OLD, NEW, NEWEST])
def test_every_queue_is_a_quorum_queue_that_no_count_of_returns_can_empty(
    version: tuple[int, int], order: Order
) -> None:
    for queue in whole(version, order).queues:
        assert queue.arguments["x-queue-type"] == "quorum"
        if version < (4, 0):
            assert "x-delivery-limit" not in queue.arguments  # 3.10 takes -1 for one delivery
        else:
            assert queue.arguments["x-delivery-limit"] == -1
        assert not [name for name in queue.arguments if "delayed-retry" in name]


def test_a_group_is_bound_to_both_ways_into_the_channel_and_to_its_own_exchange() -> None:
    plan = whole(OLD)
    assert {(each.source, each.key) for each in plan.bindings if each.destination == "orders--billing"} == {
        ("orders", "#"),
        ("orders--strict", "#"),
        ("orders--billing--return", "in"),
    }
    alternates = {each.name: each.arguments.get("alternate-exchange") for each in plan.exchanges}
    assert alternates["orders"] == "orders--unrouted"
    assert alternates["orders--strict"] is None


def test_the_ladder_gives_nothing_up_before_the_group_has_it() -> None:
    rungs = {each.name: each.arguments for each in Topology({}, max_unrouted=1).ladder(AT, OLD).queues}
    assert set(rungs) == {f"orders--billing--retry--{seconds}" for seconds in RUNGS}
    for seconds in RUNGS:
        arguments = rungs[f"orders--billing--retry--{seconds}"]
        assert arguments["x-message-ttl"] == seconds * 1000
        assert arguments["x-dead-letter-exchange"] == "orders--billing--return"
        assert arguments["x-dead-letter-strategy"] == "at-least-once"
        assert arguments["x-overflow"] == "reject-publish"
        assert "x-max-length" not in arguments


def test_partitions_stand_behind_a_hash_of_the_key() -> None:
    plan = whole(OLD, "key")
    (split,) = [each for each in plan.exchanges if each.kind == "x-consistent-hash"]
    assert split.arguments == {"hash-header": "bk-key"}
    parts = [each for each in plan.queues if "--p" in each.name]
    assert len(parts) == 4
    assert all(each.arguments["x-single-active-consumer"] is True for each in parts)
    into = {(each.source, each.key) for each in plan.bindings if each.destination == split.name}
    assert into == {("orders", "#"), ("orders--strict", "#"), ("orders--billing--return", "in")}


def test_what_is_adopted_is_in_no_plan() -> None:
    plan = whole(OLD, adopted={"orders": "their.exchange", "orders/billing": "their.queue"})
    assert "their.queue" not in {each.name for each in plan.queues}
    assert "their.exchange" not in {each.name for each in plan.exchanges}
    assert not [each for each in plan.bindings if "their.queue" in {each.destination, each.source}]
    assert "orders--billing--inlet" in {each.name for each in plan.queues}


def test_the_commands_are_those_of_rabbitmqadmin_and_nothing_is_connected() -> None:
    adapter = RabbitAdapter("amqp://user:s3cret@localhost:1")
    lines = adapter.commands([(AT, "earliest", "none"), (AT, "earliest", "none")])
    assert len(lines) == len(set(lines))
    assert "s3cret" not in "".join(lines)
    words = [shlex.split(line) for line in lines]
    assert {tuple(each[:2]) for each in words} == {("rabbitmqadmin", "declare")}
    queues = {each[3].removeprefix("name="): each for each in words if each[2] == "queue"}
    assert set(queues) == {each.name for each in whole(NEW).queues}
    arguments = json.loads(queues["orders--billing--retry--5"][-1].removeprefix("arguments="))
    assert arguments["x-queue-type"] == "quorum"
    assert arguments["x-message-ttl"] == 5000
