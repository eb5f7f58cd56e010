from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Any

import pydantic
import pytest

from brokerkit.codec import JsonCodec
from brokerkit.delivery import Delivery
from brokerkit.errors import BadName, ChainError, ConfigurationError, SignatureError, Unsupported
from brokerkit.message import Message
from brokerkit.pipeline import Handler, Place
from brokerkit.router import Consumption, Router
from brokerkit.settlement import ACK, DeadLetter, Settlement
from tests.core.deliveries import arrival, message_of, ordered
from tests.core.test_pipeline import Kind
from tests.patterns.deliveries import CAPABILITIES


class OrderPlaced(pydantic.BaseModel):
    pass


class OrderPaid(pydantic.BaseModel):
    pass


class Checking(Kind):
    """A pattern that wants to know where it runs."""

    def __init__(self) -> None:
        super().__init__("timeout")
        self.places: list[Place] = []

    def check(self, place: Place) -> None:
        self.places.append(place)


class Lends(Kind):
    provides: Mapping[type[Any], str] = {bytearray: "lent"}


async def no_flush(delivery: Delivery) -> None:
    raise AssertionError


def bound(consumption: Consumption) -> Handler:
    return consumption.bind(JsonCodec(), lambda: pytest.fail("no thread"), {}, no_flush)


def only(router: Router) -> Consumption:
    (consumption,) = router.consumptions()
    return consumption


def kinds(patterns: Sequence[Any]) -> list[str | None]:
    return [getattr(pattern, "kind", None) for pattern in patterns]


def handler_named(name: str, log: list[str] | None = None) -> Callable[..., Any]:
    async def handler(order: dict[str, Any]) -> None:
        (log if log is not None else []).append(name)

    handler.__qualname__ = name
    return handler


async def settled(handler: Handler, kind: str = "order.placed", data: bytes = b"{}") -> Settlement:
    return await handler(arrival(message_of(ordered(data, type=kind))))


def unannotated(order: Any) -> None:
    raise AssertionError


del unannotated.__annotations__["order"]


class TestDecorating:
    def test_the_function_comes_back_unchanged(self) -> None:
        router = Router()

        def handler() -> None: ...

        assert router.subscriber("orders", group="billing")(handler) is handler
        assert router.subscribers[0].endpoint.function is handler

    @pytest.mark.parametrize(
        ("channel", "group"), [("Orders", "g"), ("orders", "dead"), ("", "g"), ("orders", "")]
    )
    def test_b23_a_bad_name_is_refused_at_once(self, channel: str, group: str) -> None:
        with pytest.raises(BadName):
            Router().subscriber(channel, group=group)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"order": "fifo"},
            {"start": "now"},
            {"concurrency": 0},
            {"prefetch": 0},
            {"hold_limit": -1},
            {"max_hold": 0},
            {"max_hold": -1},
            {"max_hold": 12 * 3600 + 1},
            {"max_hold": float("nan")},
            {"unknown": "drop"},
        ],
        ids=repr,
    )
    def test_figures_that_make_no_sense_are_refused_at_once(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError):
            Router().subscriber("orders", group="billing", **wrong)

    def test_the_figures_at_the_edge_are_taken(self) -> None:
        router = Router()
        router.subscriber("orders", group="g", concurrency=1, prefetch=1, hold_limit=0, max_hold=12 * 3600)(
            handler_named("h")
        )

        assert router.subscribers[0].settings.max_hold == 43200

    def test_twice_as_many_are_taken_ahead_as_run(self) -> None:
        router = Router()
        router.subscriber("orders", group="g", concurrency=3)(handler_named("h"))

        assert router.subscribers[0].settings.prefetch == 6

    def test_a_wrong_signature_and_a_wrong_chain_are_refused_at_once(self) -> None:
        with pytest.raises(SignatureError):
            Router().subscriber("orders", group="g")(unannotated)
        with pytest.raises(ChainError):
            Router().subscriber("orders", group="g", patterns=[Kind("inbox"), Kind("retry")])(
                handler_named("h")
            )
        with pytest.raises(ChainError, match="defaults of a router"):
            Router(patterns=[Kind("inbox"), Kind("retry")])


class TestDefaultPatterns:
    def test_a_handlers_own_pattern_of_the_kind_takes_the_place_of_the_routers(self) -> None:
        own = Kind("timeout")
        router = Router(patterns=[Kind("dedupe"), Kind("timeout")])
        router.subscriber("orders", group="g", patterns=[own])(handler_named("h"))

        assert kinds(router.subscribers[0].patterns) == ["dedupe", "timeout"]
        assert router.subscribers[0].patterns[1] is own

    def test_several_of_one_kind_all_stay(self) -> None:
        one, other = Kind("bulkhead"), Kind("bulkhead")
        router = Router(patterns=[one, other, Kind("dedupe")])
        router.subscriber("orders", group="g", patterns=[Kind("retry")])(handler_named("h"))

        assert list(router.subscribers[0].patterns[:2]) == [one, other]
        assert kinds(router.subscribers[0].patterns) == ["bulkhead", "bulkhead", "dedupe", "retry"]

    def test_those_without_a_kind_go_outermost(self) -> None:
        router = Router(patterns=[Kind(None), Kind("retry")])
        router.subscriber("orders", group="g", patterns=[Kind("mine"), Kind("inbox")])(handler_named("h"))

        assert kinds(router.subscribers[0].patterns) == [None, "mine", "retry", "inbox"]

    def test_including_puts_the_outer_defaults_around_what_lacks_the_kind(self) -> None:
        inner = Router(patterns=[Kind("timeout")])
        inner.subscriber("orders", group="g", type="t", codec=JsonCodec(), ignore=["x"], unknown="ack")(
            handler_named("h")
        )
        outer = Router(patterns=[Kind("dedupe"), Kind("timeout")])
        outer.include(inner)

        (before,), (after,) = inner.subscribers, outer.subscribers
        assert kinds(after.patterns) == ["dedupe", "timeout"]
        assert replace(after, patterns=before.patterns) == before

    def test_an_include_that_makes_a_wrong_chain_is_refused(self) -> None:
        inner = Router()
        inner.subscriber("orders", group="g", patterns=[Kind("mine"), Kind("inbox")])(handler_named("h"))
        inner.subscribers[0] = replace(inner.subscribers[0], patterns=(Kind("inbox"), Kind("retry")))

        with pytest.raises(ChainError):
            Router().include(inner)

    def test_a_router_that_includes_itself_ends_in_an_error_and_not_in_a_loop(self) -> None:
        router = Router()
        router.subscriber("orders", group="g")(handler_named("h"))
        router.include(router)

        with pytest.raises(ConfigurationError, match="h is registered twice"):
            router.consumptions()

    def test_every_handler_has_a_retry(self) -> None:
        router = Router()
        router.subscriber("orders", group="g", patterns=[Kind("dedupe"), Kind("inbox")])(handler_named("h"))

        assert kinds(only(router).patterns) == ["dedupe", "retry", "inbox"]

    def test_without_the_retry_pattern_nothing_starts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def none(**_: str) -> list[EntryPoint]:
            return []

        monkeypatch.setattr("brokerkit.router.entry_points", none)
        router = Router()
        router.subscriber("orders", group="g")(handler_named("h"))

        with pytest.raises(ConfigurationError, match="default retry pattern is not installed"):
            router.consumptions()

    def test_what_a_pattern_provides_is_no_payload(self) -> None:
        router = Router(patterns=[Lends("inbox")])

        @router.subscriber("orders", group="g")
        async def handler(order: OrderPlaced, lent: bytearray) -> None: ...

        assert router.subscribers[0].endpoint.provided == {"lent": bytearray}


class TestGroups:
    def test_one_consumption_for_each_channel_and_group(self) -> None:
        router = Router()
        for channel, group in (("a", "x"), ("a", "y"), ("b", "x")):
            router.subscriber(channel, group=group)(handler_named("h"))

        assert [(each.channel, each.group) for each in router.consumptions()] == [
            ("a", "x"),
            ("a", "y"),
            ("b", "x"),
        ]

    @pytest.mark.parametrize("differ", [{"order": "key"}, {"start": "latest"}, {"unknown": "ack"}], ids=repr)
    def test_handlers_of_one_group_agree_on_what_only_the_group_can_have(
        self, differ: dict[str, Any]
    ) -> None:
        router = Router()
        router.subscriber("orders", group="g", type="a")(handler_named("one"))
        router.subscriber("orders", group="g", type="b", **differ)(handler_named("two"))

        with pytest.raises(
            ConfigurationError, match=r"orders/g: .*one and .*two differ in order, start or unknown"
        ):
            router.consumptions()

    def test_of_each_figure_the_largest_holds(self) -> None:
        router = Router()
        router.subscriber("orders", group="g", type="a", concurrency=20, hold_limit=1, max_hold=9)(
            handler_named("one")
        )
        router.subscriber(
            "orders", group="g", type="b", concurrency=2, prefetch=99, max_hold=99, hold_limit=5
        )(handler_named("two"))

        settings = only(router).settings
        assert (settings.concurrency, settings.prefetch, settings.hold_limit, settings.max_hold) == (
            20,
            99,
            5,
            99,
        )

    def test_types_are_ignored_for_the_group(self) -> None:
        router = Router()
        router.subscriber("orders", group="g", type="a", ignore=["x"])(handler_named("one"))
        router.subscriber("orders", group="g", type="b", ignore=("y",))(handler_named("two"))

        assert only(router).ignore == {"x", "y"}

    def test_two_handlers_for_one_type_are_refused(self) -> None:
        router = Router()
        router.subscriber("orders", group="g", type="order.placed")(handler_named("one"))

        @router.subscriber("orders", group="g")
        async def two(order: OrderPlaced) -> None: ...

        with pytest.raises(ConfigurationError, match=r"one and .*two both take the type 'order\.placed'"):
            router.consumptions()

    def test_one_of_several_without_a_type_is_refused(self) -> None:
        router = Router()
        router.subscriber("orders", group="g", type="a")(handler_named("one"))
        router.subscriber("orders", group="g")(handler_named("two"))

        with pytest.raises(ConfigurationError, match=r"two needs type=\.\.\., because the group has several"):
            router.consumptions()

    def test_two_handlers_of_one_name_are_refused_wherever_they_stand(self) -> None:
        """Chains are kept by name: the third would get the messages of the second."""
        router = Router()
        for name, kind in (("one", "a"), ("made", "b"), ("made", "c")):
            router.subscriber("orders", group="g", type=kind)(handler_named(name))

        with pytest.raises(ConfigurationError, match=r"made is registered twice.*__qualname__"):
            router.consumptions()


class TestRouting:
    async def test_the_only_handler_takes_every_type_but_what_is_ignored(self) -> None:
        log: list[str] = []
        router = Router()
        router.subscriber("orders", group="g", ignore=["noise"])(handler_named("h", log))
        handler = bound(only(router))

        assert [await settled(handler, kind) for kind in ("a", "b", "noise")] == [ACK] * 3
        assert log == ["h", "h"]

    async def test_several_are_told_apart_by_the_given_type_or_the_models(self) -> None:
        log: list[str] = []
        router = Router()

        @router.subscriber("orders", group="g")
        async def placed(order: OrderPlaced) -> None:
            log.append("placed")

        @router.subscriber("orders", group="g", type="paid", ignore=["noise"])
        async def paid(order: OrderPaid) -> None:
            log.append("paid")

        handler = bound(only(router))

        assert [await settled(handler, kind) for kind in ("order.placed", "paid", "noise")] == [ACK] * 3
        assert log == ["placed", "paid"]
        assert await settled(handler, "order.paid") == DeadLetter(
            "unknown_type", "no handler takes the type 'order.paid'"
        )

    async def test_b14_an_unknown_type_is_dead_lettered_or_acked_if_the_group_says_so(self) -> None:
        for unknown, settlement in (
            ("dead_letter", DeadLetter("unknown_type", "no handler takes the type 'b'")),
            ("ack", ACK),
        ):
            router = Router()
            how: Any = {"unknown": unknown}
            router.subscriber("orders", group="g", type="a", **how)(handler_named("h"))
            assert await settled(bound(only(router)), "b") == settlement

    async def test_a_plain_message_has_no_type(self) -> None:
        router = Router()
        router.subscriber("orders", group="g", type="a")(handler_named("h"))

        assert await bound(only(router))(arrival(Message(body=b"x"))) == DeadLetter(
            "unknown_type", "no handler takes the type ''"
        )

    @pytest.mark.parametrize("given", [None, "a"])
    async def test_b27_an_unreadable_envelope_is_dead_lettered_with_the_reason(
        self, given: str | None
    ) -> None:
        router = Router()
        router.subscriber("orders", group="g", type=given, unknown="ack")(handler_named("h"))
        delivery = arrival(Message(body=b"{", content_type="application/cloudevents+json"))

        settlement = await bound(only(router))(delivery)

        assert isinstance(settlement, DeadLetter)
        assert (settlement.reason, settlement.detail) == ("decode_error", delivery.event.error)

    async def test_data_that_does_not_fit_is_dead_lettered_without_a_retry(self) -> None:
        router = Router()
        router.subscriber("orders", group="g")(handler_named("h"))

        settlement = await settled(bound(only(router)), data=b"[1]")

        assert isinstance(settlement, DeadLetter)
        assert settlement.reason == "decode_error"

    async def test_a_handlers_own_codec_wins(self) -> None:
        class Shouting(JsonCodec):
            def decoder(self, model: Any) -> Callable[[bytes], Any]:
                return lambda data: data.decode().upper()

        seen: list[Any] = []
        router = Router()

        @router.subscriber("orders", group="g", codec=Shouting())
        async def handler(order: dict[str, Any]) -> None:
            seen.append(order)

        await settled(bound(only(router)), data=b'{"a":1}')
        assert seen == ['{"A":1}']


class TestStarting:
    def test_an_order_that_the_broker_cannot_keep_is_refused(self) -> None:
        router = Router()
        router.subscriber("orders", group="g", order="key")(handler_named("h"))

        only(router).check(CAPABILITIES)
        with pytest.raises(Unsupported, match="orders/g: this broker has no order='key'"):
            only(router).check(replace(CAPABILITIES, order_key=False))

    def test_every_pattern_that_wants_to_is_told_where_it_runs(self) -> None:
        checking = Checking()
        router = Router()
        router.subscriber("orders", group="g", concurrency=3, max_hold=7, patterns=[checking])(
            handler_named("h")
        )

        only(router).check(replace(CAPABILITIES, max_delay=1e6))

        assert checking.places == [
            Place(
                channel="orders",
                group="g",
                handler=f"{__name__}.h",
                order="none",
                max_hold=7,
                concurrency=3,
                blocking=False,
                capabilities=replace(CAPABILITIES, max_delay=1e6),
            )
        ]

    def test_the_plan_names_types_chains_and_what_becomes_of_the_rest(self) -> None:
        def named(handler: Handler) -> Handler:
            return handler

        router = Router()
        router.subscriber("orders", group="g", type="a", ignore=["y", "x"], patterns=[named, Kind("retry")])(
            handler_named("one")
        )
        router.subscriber("orders", group="g", type="b", patterns=[Kind("retry")])(handler_named("two"))

        assert only(router).describe() == [
            "orders / g: order=none start=earliest concurrency=16 prefetch=32 hold_limit=1000",
            f"  a: named > retry > {__name__}.one",
            f"  b: retry > {__name__}.two",
            "  left alone: x, y",
            "  any other type: dead-lettered",
        ]

    def test_the_plan_of_a_handler_alone_is_short(self) -> None:
        router = Router()
        router.subscriber("orders", group="g", patterns=[Kind("retry")])(handler_named("one"))

        assert only(router).describe()[1:] == [f"  every type: retry > {__name__}.one"]

    def test_the_plan_warns_where_the_rest_is_acked(self) -> None:
        router = Router()
        router.subscriber("orders", group="g", type="a", unknown="ack")(handler_named("one"))

        assert only(router).describe()[-1] == "  any other type: acked"
