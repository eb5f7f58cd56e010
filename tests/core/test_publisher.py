import asyncio
import itertools
import subprocess
import sys
import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brokerkit.codec import JsonCodec
from brokerkit.context import CURRENT
from brokerkit.delivery import Delivery
from brokerkit.envelope import Form, open_event
from brokerkit.errors import (
    BadHeader,
    BadKey,
    BadName,
    Closed,
    ConfigurationError,
    ConnectionLost,
    LoopDetected,
    PublishUnknown,
    SendError,
    TooLarge,
    Unauthorised,
)
from brokerkit.event import Event
from brokerkit.message import Address, Message
from brokerkit.publisher import Outgoing, Publisher, flush_outputs
from tests.core.deliveries import NOW, arrival, case, examples, message_of, ordered
from tests.core.fakes import virtual
from tests.patterns.deliveries import CAPABILITIES

Answer = Sequence[SendError | None] | BaseException


class OrderPlaced(pydantic.BaseModel):
    n: int = 1


class Wall:
    def time(self) -> float:
        return NOW


class Broker:
    """The sending half of an adapter: answers as told, and confirms what comes after."""

    def __init__(self, *answers: Answer | None) -> None:
        self.answers = list(answers)
        self.sent: list[tuple[Address, list[Message], bool]] = []
        self.capabilities = replace(CAPABILITIES, max_message=64 * 1024)
        self.before: Callable[[], None] = lambda: None

    async def send(
        self,
        to: Address,
        messages: Sequence[Message],
        *,
        after: float | Sequence[float] = 0,
        must_route: bool = False,
    ) -> Sequence[SendError | None]:
        self.sent.append((to, list(messages), must_route))
        self.before()
        answer = self.answers.pop(0) if self.answers else [None] * len(messages)
        if answer is None:
            await asyncio.get_running_loop().create_future()
            raise AssertionError
        if isinstance(answer, BaseException):
            raise answer
        return answer


def publisher(
    broker: Broker | None = None, *, name: str | None = "shop", prefix: str = "", timeout: float = 30
) -> Publisher:
    made = Publisher(
        name=name, codec=JsonCodec(), form="structured", prefix=prefix, timeout=timeout, clock=Wall()
    )
    made.adapter = broker  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue]
    return made


def make(
    data: Any = None,
    *,
    at: Delivery | None = None,
    channel: str = "audit",
    form: Form | None = None,
    **how: Any,
) -> tuple[Event[bytes], Message]:
    context = copy_context()
    context.run(CURRENT.set, at)
    outgoing = Outgoing(data=OrderPlaced() if data is None else data, **how)
    return context.run(publisher().make, channel, outgoing, form)


def identity(at: Delivery | None, data: Any = None, **how: Any) -> str:
    return make(data, at=at, **how)[0].id


def incoming(**more: Any) -> Delivery:
    return arrival(message_of(ordered(**more)))


async def inside(delivery: Delivery, work: Coroutine[Any, Any, Any]) -> Any:
    """Run in the context of a handling."""
    context = copy_context()
    context.run(CURRENT.set, delivery)
    return await asyncio.get_running_loop().create_task(work, context=context)


def publish(
    to: Publisher,
    *data: Any,
    channel: str = "audit",
    hold: bool = True,
    timeout: float | None = None,
    must_route: bool = False,
) -> Coroutine[Any, Any, Any]:
    outgoing = [Outgoing(data=each) for each in data]
    return to.publish(channel, outgoing, form=None, must_route=must_route, hold=hold, timeout=timeout)


class TestMaking:
    def test_an_event_has_the_buss_name_the_models_type_and_the_time(self) -> None:
        event, message = make(
            OrderPlaced(n=2), key="o-17", headers={"tenant": "blue"}, subject="sub", extensions={"x": "y"}
        )

        assert (event.source, event.type, event.data) == ("shop", "order.placed", b'{"n":2}')
        assert (event.time, event.datacontenttype) == ("2026-01-01T00:00:00.125000Z", "application/json")
        assert uuid.UUID(event.id).version == 4
        assert (message.key, message.headers) == (b"o-17", (("tenant", "blue"),))
        assert open_event(message, lambda: ("", "")) == event

    def test_what_is_given_wins(self) -> None:
        event, _ = make(b"\xff", type="raw", id="mine", time="2026-01-31T12:00:00Z")

        assert (event.type, event.id, event.time) == ("raw", "mine", "2026-01-31T12:00:00Z")
        assert event.datacontenttype == "application/octet-stream"

    @pytest.mark.parametrize("form", ["structured", "binary", "plain"])
    def test_the_form_of_one_message_wins_over_the_buss(self, form: Form) -> None:
        _, message = make(form=form)

        assert (message.content_type == "application/cloudevents+json") == (form == "structured")
        assert (message.header("ce-type") is not None) == (form == "binary")

    def test_without_a_name_nothing_is_published(self) -> None:
        with pytest.raises(ConfigurationError, match=r"Bus\(name=\.\.\.\)"):
            publisher(name=None).make("audit", Outgoing(data=1, type="t"), None)

    @pytest.mark.parametrize("data", [{"a": 1}, "text", 7, b"x", None, [1]])
    def test_data_that_stands_for_no_type_needs_one(self, data: Any) -> None:
        with pytest.raises(ConfigurationError, match=f"{type(data).__name__} stands for no event type"):
            publisher().make("audit", Outgoing(data=data), None)

    @pytest.mark.parametrize("data", [object(), {"a": float("nan")}, {"a": "\ud800"}], ids=case)
    def test_b16_b28_what_cannot_be_written_is_a_typed_error(self, data: Any) -> None:
        with pytest.raises(ConfigurationError, match="cannot be written as application/json"):
            make(data, type="t")

    def test_a_channel_is_checked(self) -> None:
        with pytest.raises(BadName):
            make(channel="Audit")

    @pytest.mark.parametrize(
        "wrong",
        [
            {"id": ""},
            {"id": 0},
            {"id": 17},
            {"id": "i" * 1025},
            {"id": "a\nb"},
            {"id": "a\x00"},
            {"id": "\ud800"},
            {"type": "t\r"},
            {"type": "t" * 1025},
            {"subject": ""},
            {"subject": 7},
            {"subject": "\ud800"},
            {"subject": "a\x00b"},
            {"subject": "s" * 1025},
            {"time": "yesterday"},
            {"time": "2016-12-31T23:59:60Z"},
            {"time": "\ud800"},
            {"extensions": {"Upper": "x"}},
            {"extensions": {"with-dash": "x"}},
            {"extensions": {"": "x"}},
            {"extensions": {"é": "x"}},
            {"extensions": {"x": 7}},
            {"extensions": {"x": "a\nb"}},
            {"extensions": {"x": "\ud800"}},
            *(
                {"extensions": {name: "x"}}
                for name in ("id", "source", "type", "data", "specversion", "time", "subject")
            ),
            {"extensions": {"datacontenttype": "x"}},
            {"extensions": {"dataschema": "x"}},
            {"headers": {"a": "b\r\nc"}},
            {"headers": {"a:b": "c"}},
            {"headers": [("a", 7)]},
            {"headers": [("a", "")] * 129},
        ],
        ids=case,
    )
    def test_b4_b5_b7_b8_b13_b20_what_cannot_travel_is_refused_before_anything_moves(
        self, wrong: dict[str, Any]
    ) -> None:
        with pytest.raises(BadHeader):
            make(**wrong)

    @pytest.mark.parametrize(
        "identity", ["é😀", "e\u0301", "'; DROP TABLE", "../x", "i" * 1024, "a b"], ids=case
    )
    @pytest.mark.parametrize("form", ["structured", "binary"])
    def test_b5_b13_odd_ids_travel_unchanged(self, identity: str, form: Form) -> None:
        _, message = make(id=identity, form=form)

        assert open_event(message, lambda: ("", "")).id == identity

    @pytest.mark.parametrize(
        "name",
        [
            "bk-v",
            "BK-Attempt",
            "bk-anything",
            "ce-id",
            "CE_id",
            "cloudevents_x",
            "content-type",
            "Content-Type",
            *("x-death", "X-Death", "x-first-death-queue", "x-delivery-count", "Nats-Rollup", "nats-msg-id"),
        ],
    )
    def test_b9_a_header_that_is_not_the_senders_to_set_is_refused(self, name: str) -> None:
        with pytest.raises(BadHeader, match=f"header '{name}' is reserved"):
            make(headers={name: "forged"})

    def test_b10_repeated_headers_stay_in_order(self) -> None:
        assert make(headers=[("a", "1"), ("a", b"2"), ("A", "3")])[1].headers == (
            ("a", "1"),
            ("a", b"2"),
            ("A", "3"),
        )

    @pytest.mark.parametrize(
        ("key", "encoded"),
        [(None, None), ("", b""), ("é", "é".encode()), ("a\x00\n", b"a\x00\n"), ("k" * 1024, b"k" * 1024)],
        ids=case,
    )
    def test_b24_a_key_is_text_in_utf8(self, key: str | None, encoded: bytes | None) -> None:
        assert make(key=key)[1].key == encoded

    @pytest.mark.parametrize("key", [b"k", 7, "k" * 1025, "é" * 513, "\ud800", "k" * 1_000_000], ids=case)
    def test_b24_any_other_key_is_refused(self, key: Any) -> None:
        with pytest.raises(BadKey):
            make(key=key)

    def test_b6_the_limit_less_16_kib_is_the_most_in_bytes_with_headers(self) -> None:
        made = publisher(Broker())
        limit = 48 * 1024
        size = made.make("audit", Outgoing(data=b"", type="t", id="i", headers={"a": "é"}), "plain")[1].size

        largest = Outgoing(data=b"x" * (limit - size), type="t", id="i", headers={"a": "é"})
        assert made.make("audit", largest, "plain")[1].size == limit
        with pytest.raises(TooLarge, match=f"has {limit + 1} bytes with its headers; at most {limit}"):
            made.make(
                "audit",
                Outgoing(data=b"x" * (limit - size + 1), type="t", id="i", headers={"a": "é"}),
                "plain",
            )


class TestDerivedIds:
    def test_a_second_run_over_the_same_message_publishes_the_same_ids(self) -> None:
        assert identity(incoming()) == identity(incoming())

    def test_equal_publishes_in_one_handling_are_told_apart_and_repeat(self) -> None:
        runs = [[identity(at) for _ in range(3)] for at in (incoming(), incoming())]

        assert runs[0] == runs[1]
        assert len(set(runs[0])) == 3

    def test_equals_are_counted_apart_from_others_so_order_among_others_plays_no_part(self) -> None:
        one, other = incoming(), incoming()
        forward = {number: identity(one, OrderPlaced(n=number)) for number in (1, 2, 3)}
        backward = {number: identity(other, OrderPlaced(n=number)) for number in (3, 2, 1)}

        assert forward == backward

    def test_whatever_makes_two_publishes_differ_makes_their_ids_differ(self) -> None:
        ids = [
            identity(incoming()),
            identity(incoming(identity="e-2")),
            identity(incoming(source="other")),
            identity(arrival(group="other")),
            identity(arrival(channel="other")),
            identity(incoming(), OrderPlaced(n=2)),
            identity(incoming(), channel="elsewhere"),
            identity(incoming(), type="other"),
            identity(incoming(), key="k"),
            identity(incoming(), key=""),
            identity(incoming(), subject="s"),
        ]

        assert len(set(ids)) == len(ids)

    texts = st.text("a\x1f\x00:/8", min_size=1, max_size=3)

    @given(st.tuples(texts, texts), st.tuples(texts, texts))
    @examples(80)
    def test_no_two_incoming_events_give_one_id_whatever_theirs_hold(
        self, one: tuple[str, str], other: tuple[str, str]
    ) -> None:
        ids = [identity(incoming(source=source, identity=name)) for source, name in (one, other)]

        assert (ids[0] == ids[1]) == (one == other)

    def test_a_given_id_is_not_derived_and_counts_for_nothing(self) -> None:
        at = incoming()

        assert make(at=at, id="mine")[0].id == "mine"
        assert identity(at) == identity(incoming())

    def test_time_and_headers_play_no_part(self) -> None:
        assert identity(incoming(), time="2026-01-31T12:00:00Z", headers={"a": "b"}) == identity(incoming())

    def test_they_are_the_same_in_another_process(self) -> None:
        program = (
            "from tests.core.test_publisher import identity, incoming, OrderPlaced;"
            "print(identity(incoming(), OrderPlaced(n=5), key='k'))"
        )
        seeds = ("0", "1")
        ids = {
            subprocess.run(
                [sys.executable, "-c", program],
                env={"PYTHONHASHSEED": seed},
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            for seed in seeds
        }

        assert ids == {identity(incoming(), OrderPlaced(n=5), key="k")}

    def test_outside_a_handling_they_are_random(self) -> None:
        assert identity(None) != identity(None)


class TestWhatIsPassedOn:
    def test_correlation_cause_depth_and_trace(self) -> None:
        event, _ = make(
            at=incoming(
                extensions={
                    "correlationid": "c",
                    "traceparent": "00-a-b-01",
                    "tracestate": "x=y",
                    "other": "z",
                }
            )
        )

        assert event.extensions == {
            "correlationid": "c",
            "causationid": "e-1",
            "causationdepth": "1",
            "traceparent": "00-a-b-01",
            "tracestate": "x=y",
        }

    def test_the_first_of_a_chain_is_its_correlation(self) -> None:
        assert make(at=incoming())[0].extensions == {
            "correlationid": "e-1",
            "causationid": "e-1",
            "causationdepth": "1",
        }

    def test_what_a_handler_gives_wins_but_for_the_depth(self) -> None:
        event, _ = make(
            at=incoming(), extensions={"correlationid": "mine", "causationid": "m", "causationdepth": "0"}
        )

        assert event.extensions == {"correlationid": "mine", "causationid": "m", "causationdepth": "1"}

    @pytest.mark.parametrize("odd", ["a\nb", "\x00", "x" * 1025, "\r\n"], ids=case)
    def test_an_odd_id_of_a_stranger_does_not_keep_a_handler_from_answering(self, odd: str) -> None:
        at = incoming(identity=odd, extensions={"correlationid": odd, "traceparent": odd})

        assert make(at=at)[0].extensions == {"causationdepth": "1"}

    def test_nor_does_a_lone_surrogate(self) -> None:
        body = b'{"specversion":"1.0","id":"\\ud800","source":"s","type":"t"}'

        assert make(at=arrival(Message(body=body)))[0].extensions == {"causationdepth": "1"}

    @pytest.mark.parametrize(
        ("depth", "next_depth"),
        [
            ("1", "2"),
            ("98", "99"),
            ("99", "100"),
            ("-1", "1"),
            ("x", "1"),
            ("²", "1"),
            ("9" * 6, "1"),
            ("", "1"),
        ],
    )
    def test_the_depth_grows_and_an_odd_one_begins_again(self, depth: str, next_depth: str) -> None:
        assert (
            make(at=incoming(extensions={"causationdepth": depth}))[0].extensions["causationdepth"]
            == next_depth
        )

    @pytest.mark.parametrize("depth", ["100", "101", "99999"])
    def test_b30_a_loop_is_cut(self, depth: str) -> None:
        with pytest.raises(LoopDetected, match=f"{depth} events have been published in answer"):
            make(at=incoming(extensions={"causationdepth": depth}))

    def test_outside_a_handling_nothing_is_added(self) -> None:
        assert make(extensions={"x": "y"})[0].extensions == {"x": "y"}


LOST, UNKNOWN, DENIED = ConnectionLost("gone"), PublishUnknown("who knows"), Unauthorised("no")


class TestSending:
    @staticmethod
    def sent(broker: Broker) -> list[list[bytes]]:
        return [[message.body for message in messages] for _, messages, _ in broker.sent]

    messages = (Message(body=b"a"), Message(body=b"b"), Message(body=b"c"))

    @virtual
    async def test_to_the_prefixed_channel_with_one_outcome_each(self) -> None:
        broker = Broker([None, DENIED, None])

        outcomes = await publisher(broker, prefix="blue").send("audit", self.messages, must_route=True)

        assert outcomes == [None, DENIED, None]
        assert broker.sent == [(Address("blue.audit"), list(self.messages), True)]

    @virtual
    async def test_only_what_may_pass_by_itself_is_sent_again_until_confirmed(self) -> None:
        broker = Broker([LOST, None, UNKNOWN], [None, LOST], [None])

        assert await publisher(broker).send("audit", self.messages) == [None, None, None]
        assert self.sent(broker) == [[b"a", b"b", b"c"], [b"a", b"c"], [b"c"]]

    @virtual
    async def test_an_error_that_is_raised_counts_for_all(self) -> None:
        broker = Broker(LOST, DENIED)

        assert await publisher(broker).send("audit", self.messages) == [DENIED] * 3

    @pytest.mark.parametrize("stray", [asyncio.CancelledError(), RuntimeError("a bug"), [None]], ids=case)
    @virtual
    async def test_what_a_client_does_wrong_is_unknown_and_tried_again_and_cancels_nobody(
        self, stray: Any
    ) -> None:
        broker = Broker(stray, [None] * 3)

        assert await publisher(broker).send("audit", self.messages) == [None] * 3
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        assert len(broker.sent) == 2

    @virtual
    async def test_what_a_client_does_wrong_to_the_end_is_unknown_with_its_cause(self) -> None:
        bug = RuntimeError("a bug")
        (outcome, *_) = await publisher(Broker(*[bug] * 1000), timeout=1).send("audit", self.messages)
        assert isinstance(outcome, PublishUnknown)
        assert outcome.__cause__ is bug

    @virtual
    async def test_who_is_cancelled_is_cancelled(self) -> None:
        task = asyncio.create_task(publisher(Broker(None)).send("audit", self.messages))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    @virtual
    async def test_when_the_time_is_over_the_last_error_is_the_outcome(self) -> None:
        broker = Broker(*[LOST] * 1000)
        loop = asyncio.get_running_loop()
        began = loop.time()

        assert await publisher(broker, timeout=10).send("audit", self.messages) == [LOST] * 3
        assert 7 < loop.time() - began <= 10
        assert 8 <= len(broker.sent) <= 20

    @virtual
    async def test_a_timeout_of_its_own_wins(self) -> None:
        loop = asyncio.get_running_loop()
        await publisher(Broker(*[LOST] * 1000), timeout=1000).send("audit", self.messages, timeout=1)

        assert loop.time() <= 1

    @virtual
    async def test_a_confirmation_that_does_not_come_is_unknown(self) -> None:
        broker = Broker(None)

        (outcome,) = await publisher(broker, timeout=5).send("audit", self.messages[:1])

        assert isinstance(outcome, PublishUnknown)
        assert "no confirmation for audit within the publish timeout" in str(outcome)
        assert len(broker.sent) == 1

    @pytest.mark.parametrize("last", [LOST, DENIED], ids=["lost", "denied"])
    @virtual
    async def test_once_unknown_it_stays_unknown_until_confirmed(self, last: SendError) -> None:
        outcomes = await publisher(Broker([UNKNOWN, DENIED], *[[last]] * 1000), timeout=3).send(
            "audit", self.messages[:2]
        )

        assert isinstance(outcomes[0], PublishUnknown)
        assert outcomes[0].__cause__ is last
        assert outcomes[1] is DENIED

    @virtual
    async def test_unknown_to_the_end_is_told_as_it_came(self) -> None:
        assert await publisher(Broker(*[UNKNOWN] * 1000), timeout=3).send("audit", self.messages[:1]) == [
            UNKNOWN
        ]

    @virtual
    async def test_not_connected_is_closed_and_closed_meanwhile_is_lost(self) -> None:
        assert [type(error) for error in await publisher().send("audit", self.messages)] == [Closed] * 3

        broker = Broker(LOST)
        made = publisher(broker, timeout=1)

        def close() -> None:
            made.adapter = None

        broker.before = close
        (outcome,) = await made.send("audit", self.messages[:1])
        assert isinstance(outcome, ConnectionLost)


class TestHolding:
    @virtual
    async def test_outside_a_handler_it_is_sent_at_once_with_its_outcome(self) -> None:
        broker = Broker([None, DENIED])

        one, other = await publish(publisher(broker), OrderPlaced(n=1), OrderPlaced(n=2))

        assert (one.error, other.error) == (None, DENIED)
        assert one.event.data == b'{"n":1}'

    @virtual
    async def test_inside_a_handler_it_waits_for_the_flush_in_order_and_together(self) -> None:
        broker, elsewhere, delivery = Broker(), Broker(), arrival()
        made, other = publisher(broker), publisher(elsewhere)
        delivery.handling = True
        for to, channel, must_route in (
            (made, "a", False),
            (made, "a", False),
            (made, "b", False),
            (made, "b", True),
            (other, "b", True),
        ):
            (outcome,) = await inside(
                delivery, publish(to, OrderPlaced(), channel=channel, must_route=must_route)
            )
            assert outcome.error is None
        assert broker.sent == []

        await flush_outputs(delivery)

        assert [(str(to), len(sent), must) for to, sent, must in broker.sent] == [
            ("a", 2, False),
            ("b", 1, False),
            ("b", 1, True),
        ]
        assert len(elsewhere.sent) == 1
        assert len({message.copy_id for _, sent, _ in broker.sent for message in sent}) == 4

    @virtual
    async def test_a_flush_raises_the_first_error_and_sends_nothing_behind_it(self) -> None:
        broker, delivery = Broker([DENIED]), arrival()
        delivery.handling = True
        for channel in ("a", "b"):
            await inside(delivery, publish(publisher(broker), OrderPlaced(), channel=channel))

        with pytest.raises(Unauthorised):
            await flush_outputs(delivery)
        assert len(broker.sent) == 1
        await flush_outputs(delivery)
        assert len(broker.sent) == 1

    @virtual
    async def test_hold_false_sends_it_now_under_the_same_kind_of_id(self) -> None:
        broker, delivery = Broker(), arrival()
        delivery.handling = True

        (outcome,) = await inside(delivery, publish(publisher(broker), OrderPlaced(), hold=False))

        assert len(broker.sent) == 1
        assert outcome.event.id == identity(arrival())

    @virtual
    async def test_a_task_that_has_outlived_its_handler_loses_nothing(self) -> None:
        broker, delivery = Broker(), arrival()

        await inside(delivery, publish(publisher(broker), OrderPlaced()))

        assert len(broker.sent) == 1
        assert delivery.extra is None or "outputs" not in delivery.extra

    async def test_without_outputs_a_flush_does_nothing(self) -> None:
        await flush_outputs(arrival())

    @virtual
    async def test_what_cannot_travel_raises_before_any_of_it_is_held_or_sent(self) -> None:
        broker, delivery = Broker(), arrival()
        delivery.handling = True
        for work in (
            publish(publisher(broker), OrderPlaced(), object()),
            publish(publisher(broker), OrderPlaced(), "no type"),
        ):
            with pytest.raises(ConfigurationError):
                await inside(delivery, work)

        await flush_outputs(delivery)
        assert broker.sent == []


def test_back_off_never_sleeps_in_step() -> None:
    """Two publishers that lost one broker come back at different times."""

    async def times() -> list[float]:
        broker = Broker(*[LOST] * 6)
        loop = asyncio.get_running_loop()
        seen: list[float] = []
        broker.before = lambda: seen.append(loop.time())
        await publisher(broker).send("audit", [Message(body=b"x")])
        return [later - earlier for earlier, later in itertools.pairwise(seen)]

    async def check() -> None:
        one, other = await times(), await times()
        assert one != other
        for wait, most in zip(one, (0.05, 0.1, 0.2, 0.4, 0.8, 1.6), strict=True):
            assert most / 2 - 1e-6 <= wait <= most + 1e-6

    virtual(check)()
