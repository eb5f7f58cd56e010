"""Partitions of `order="key"`: shared among the members, and moved without an inversion or a second handling."""

import asyncio
from collections import defaultdict

from brokerkit.adapters.rabbitmq.wire import table_of
from brokerkit.errors import BrokerkitError
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK
from tests.adapters.rabbitmq.broker import Adapters, Member, fresh, inlet, join, sure

PARTS = 6


def keyed(count: int, keys: int) -> list[Message]:
    return [Message(body=str(n).encode(), key=f"k{n % keys}".encode()) for n in range(count)]


async def owned(member: Member, until: set[bytes]) -> set[bytes]:
    """Take what comes to a member, ack it, and return the keys."""
    keys: set[bytes] = set()
    try:
        async with asyncio.timeout(0.3):
            while batch := await member.subscription.receive(50):
                await member.ack(batch)
                keys.update(each.message.key or b"" for each in batch)
                until.difference_update(each.message.body for each in batch)
    except TimeoutError:
        pass
    return keys


async def test_three_members_come_to_share_and_one_takes_all_when_the_others_leave(
    adapters: Adapters,
) -> None:
    channel = fresh()
    members = [
        await join(await adapters(heartbeat=2, partitions=PARTS), inlet(channel), order="key")
        for _ in range(3)
    ]
    sender = await adapters()
    async with asyncio.timeout(40):
        while True:
            await sure(sender, Address(channel), keyed(200, 200))
            left = {str(n).encode() for n in range(200)}
            shares = [await owned(member, left) for member in members]
            while left:
                for share, member in zip(shares, members, strict=True):
                    share.update(await owned(member, left))
            if all(shares) and sum(map(len, shares)) == 200:
                break
    for member in members[1:]:
        await member.subscription.close()
    await sure(sender, Address(channel), keyed(200, 200))
    assert len(await members[0].take(200, ack=True)) == 200


async def test_members_that_come_and_go_under_load_leave_no_inversion(
    adapters: Adapters,
) -> None:
    channel = fresh()
    done: dict[bytes, list[int]] = defaultdict(list)
    finished: set[int] = set()

    async def consume(member: Member) -> None:
        try:
            while batch := await member.subscription.receive(8):
                await asyncio.sleep(0.003)
                for each in batch:
                    number = int(each.message.body)
                    if number not in finished:
                        done[each.message.key or b""].append(number)
                    finished.add(number)
                await member.subscription.settle([(each, ACK) for each in batch])
        except BrokerkitError as error:
            raise AssertionError from error

    async def come_and_go(rounds: int) -> None:
        adapter = await adapters(heartbeat=2, partitions=PARTS)
        for number in range(rounds):
            member = await join(adapter, inlet(channel), order="key", prefetch=50)
            task = asyncio.create_task(consume(member))
            await asyncio.sleep(0.7 + number * 0.2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await member.subscription.close()

    sender = await adapters()
    stays = await join(
        await adapters(heartbeat=2, partitions=PARTS), inlet(channel), order="key", prefetch=50
    )
    staying = asyncio.create_task(consume(stays))
    going = asyncio.create_task(come_and_go(4))
    messages = keyed(3000, 40)
    for at in range(0, len(messages), 50):
        await sure(sender, Address(channel), messages[at : at + 50])
        await asyncio.sleep(0.05)
    await going
    async with asyncio.timeout(30):
        while len(finished) < len(messages):
            await asyncio.sleep(0.05)
            assert not staying.done()
    await stays.subscription.close()
    await staying
    assert {key: numbers for key, numbers in done.items() if numbers != sorted(numbers)} == {}


async def test_the_number_of_partitions_is_the_group_s_and_not_a_member_s(adapters: Adapters) -> None:
    channel = fresh()
    first = await join(await adapters(partitions=3), inlet(channel), order="key")
    second_adapter = await adapters(partitions=12)
    await join(second_adapter, inlet(channel), order="key")
    missing = await second_adapter.provision([(inlet(channel), "earliest", "key")], create=False)
    assert not [name for name in missing if f"{channel}--g--p" in name]
    await sure(second_adapter, Address(channel), keyed(30, 30))
    await first.subscription.close()


def test_the_key_is_where_the_hash_exchange_looks_for_it() -> None:
    _, table = table_of(Message(body=b"", key=b"\xff"))
    assert table["bk-key"] == "/w=="
    assert "bk-key" not in table_of(Message(body=b""))[1]
