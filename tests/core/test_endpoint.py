import asyncio
import contextlib
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Protocol, TypeVar

import msgspec
import pydantic
import pytest
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from brokerkit.codec import JsonCodec
from brokerkit.context import CURRENT, current
from brokerkit.delivery import Delivery
from brokerkit.endpoint import Endpoint, State, type_of
from brokerkit.errors import (
    ConfigurationError,
    DecodeError,
    HandlerCancelled,
    HandlerResultError,
    SignatureError,
)
from brokerkit.event import Event
from brokerkit.message import Message
from brokerkit.settlement import ACK, Ack, DeadLetter, Retry, Settle, Settlement
from tests.core.deliveries import arrival, message_of, ordered

T = TypeVar("T")


class OrderPlaced(pydantic.BaseModel):
    n: int


@dataclass
class Placed:
    n: int


class PlacedDict(TypedDict):
    n: int


class PlacedStruct(msgspec.Struct):
    n: int


class Database:
    pass


class Wider(Database):
    pass


class Connection:
    pass


class Lends:
    """A pattern that gives the handler a connection."""

    kind = "inbox"
    provides: Mapping[type[Any], str] = {Connection: "connection"}

    def __call__(self, handler: Any) -> Any:
        return handler


class Cut(BaseException):
    """What a panic of a library in Rust looks like."""


async def no_flush(delivery: Delivery) -> None:
    raise AssertionError


class Bound:
    """An endpoint with what a bus would give it."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        patterns: tuple[Any, ...] = (),
        state: Mapping[str, Any] | None = None,
        flush: Callable[[Delivery], Awaitable[None]] = no_flush,
    ) -> None:
        self.endpoint = Endpoint.inspect(function, patterns)
        self.pool = ThreadPoolExecutor(1)
        self.handler = self.endpoint.bind(JsonCodec(), lambda: self.pool, state or {}, flush)

    async def __call__(self, delivery: Delivery | None = None) -> Settlement:
        try:
            return await self.handler(delivery or arrival())
        finally:
            self.pool.shutdown(wait=False)


def refused(function: Any, *patterns: Any) -> str:
    with pytest.raises(SignatureError) as caught:
        Endpoint.inspect(function, patterns)
    return str(caught.value)


class TestWhatAHandlerMayTake:
    @pytest.mark.parametrize(
        ("model", "expected"),
        [
            (OrderPlaced, OrderPlaced(n=1)),
            (Placed, Placed(n=1)),
            (PlacedDict, {"n": 1}),
            (PlacedStruct, PlacedStruct(n=1)),
            (dict, {"n": 1}),
            (dict[str, int], {"n": 1}),
            (bytes, b'{"n":1}'),
            (Any, {"n": 1}),
            (OrderPlaced | None, OrderPlaced(n=1)),
        ],
    )
    @pytest.mark.parametrize("shape", ["data", "event"])
    async def test_the_payload_as_any_model_alone_or_in_an_event(
        self, model: Any, expected: object, shape: str
    ) -> None:
        seen: list[Any] = []

        async def handler(payload: Any) -> None:
            seen.append(payload)

        handler.__annotations__["payload"] = model if shape == "data" else Event[model]

        assert await Bound(handler)() is ACK
        assert (seen[0] if shape == "data" else seen[0].data) == expected

    async def test_a_list_of_models(self) -> None:
        seen: list[object] = []

        async def handler(orders: list[OrderPlaced]) -> None:
            seen.extend(orders)

        await Bound(handler)(arrival(message_of(ordered(b'[{"n":1},{"n":2}]'))))

        assert seen == [OrderPlaced(n=1), OrderPlaced(n=2)]

    async def test_a_bare_event_has_bytes(self) -> None:
        seen: list[Any] = []

        async def handler(event: Any) -> None:
            seen.append(event)

        handler.__annotations__["event"] = Event

        await Bound(handler)()

        assert (seen[0].data, seen[0].id) == (b'{"n":1}', "e-1")

    async def test_all_of_it_together_by_position_and_by_keyword(self) -> None:
        seen: list[Any] = []

        async def handler(
            order: OrderPlaced,
            /,
            delivery: Delivery,
            *,
            event: Event[OrderPlaced],
            db: State[Database],
            tx: Connection,
        ) -> None:
            seen.extend([order.n, delivery, event.data.n, db, tx])

        db, tx, delivery = Wider(), Connection(), arrival()
        delivery.extra = {"connection": tx}
        bound = Bound(handler, patterns=(Lends(),), state={"db": db})

        assert await bound(delivery) is ACK
        assert seen == [1, delivery, 1, db, tx]
        assert bound.endpoint.provided == {"tx": Connection}

    async def test_nothing_at_all(self) -> None:
        async def handler() -> None:
            return None

        bound = Bound(handler)

        assert await bound(arrival(Message(body=b"\xff"))) is ACK
        assert bound.endpoint.model is None
        assert bound.endpoint.type_name is None

    async def test_more_about_the_model_in_an_annotation(self) -> None:
        async def handler(order: Annotated[dict[str, int], pydantic.Field(min_length=2)]) -> None: ...

        with pytest.raises(DecodeError):
            await Bound(handler)()

    async def test_annotations_in_text(self) -> None:
        async def handler(order: "OrderPlaced", event: "Event[OrderPlaced]") -> None:
            assert order == event.data

        assert await Bound(handler)() is ACK

    async def test_the_same_generic_twice_is_one_payload(self) -> None:
        async def handler(order: dict[str, int], event: Event[dict[str, int]]) -> None:
            assert order == event.data

        assert await Bound(handler)() is ACK


class TestDefaults:
    """A default means: this parameter is the function's own. Except where brokerkit knows what to give."""

    async def test_a_parameter_with_a_default_beside_the_payload_is_left_alone(self) -> None:
        seen: list[Any] = []

        async def handler(retries: int = 3, *, order: OrderPlaced, unknown="u", delivery: Delivery) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001 # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
            seen.extend([retries, order.n, unknown, delivery.attempt])

        await Bound(handler)()

        assert seen == [3, 1, "u", 1]

    async def test_what_stands_behind_one_is_given_by_name(self) -> None:
        seen: list[Any] = []

        async def handler(
            order: OrderPlaced, retries: int = 3, delivery: Delivery | None = None, at: Any = None
        ) -> None:
            seen.extend([order.n, retries, delivery, at])

        await Bound(handler)()

        assert seen == [1, 3, None, None]

    async def test_a_default_of_what_brokerkit_knows_is_never_used(self) -> None:
        seen: list[Any] = []
        nothing: Any = None

        async def handler(event: Event[OrderPlaced] = nothing, delivery: Delivery = nothing) -> None:
            seen.extend([event.data.n, delivery.attempt])

        await Bound(handler)()

        assert seen == [1, 1]

    def test_a_payload_with_a_default_is_refused_for_it_would_silently_never_be_filled(self) -> None:
        async def handler(order: OrderPlaced | None = None) -> None: ...

        assert "parameter 'order' has a default and would never be filled" in refused(handler)

    def test_even_beside_a_delivery(self) -> None:
        async def handler(delivery: Delivery, order: OrderPlaced | None = None) -> None: ...

        assert "parameter 'order' has a default" in refused(handler)


class Charger:
    async def __call__(self, order: OrderPlaced) -> None:
        assert order.n == 1

    async def method(self, order: OrderPlaced) -> None:
        assert order.n == 1

    @classmethod
    async def of_class(cls, order: OrderPlaced) -> None:
        assert order.n == 1

    @staticmethod
    async def static(order: OrderPlaced) -> None:
        assert order.n == 1


class Blocking:
    def __call__(self, order: OrderPlaced) -> None:
        assert threading.current_thread() is not threading.main_thread()


async def two(order: OrderPlaced, how: Any) -> None:
    assert (order.n, how) == (1, "so")


def blocking_two(how: Any, order: OrderPlaced) -> None:
    assert (order.n, how) == (1, "so")


class TestWaysToWriteOne:
    @pytest.mark.parametrize(
        ("function", "name", "blocking"),
        [
            (Charger(), "Charger", False),
            (Charger().method, "Charger.method", False),
            (Charger.of_class, "Charger.of_class", False),
            (Charger.static, "Charger.static", False),
            (Blocking(), "Blocking", True),
            (functools.partial(two, how="so"), "two", False),
            (functools.partial(blocking_two, "so"), "blocking_two", True),
            (functools.partial(functools.partial(two), how="so"), "two", False),
            (functools.partial(Charger()), "Charger", False),
        ],
    )
    async def test_anything_that_can_be_called(self, function: Any, name: str, blocking: bool) -> None:
        bound = Bound(function)

        assert await bound() is ACK
        assert bound.endpoint.name == f"{__name__}.{name}"
        assert bound.endpoint.blocking is blocking
        assert bound.endpoint.model is OrderPlaced

    async def test_one_inside_an_async_decorator_that_keeps_its_face(self) -> None:
        async def handler(order: OrderPlaced) -> None: ...

        @functools.wraps(handler)
        async def wrapper(*args: Any, **kwargs: Any) -> None:
            await handler(*args, **kwargs)

        assert await Bound(wrapper)() is ACK

    @pytest.mark.parametrize("odd", [7, None, "handler", OrderPlaced, Charger], ids=repr)
    def test_what_is_no_function_is_refused(self, odd: object) -> None:
        assert "is no handler; give a function" in refused(odd)

    def test_a_generator_is_refused(self) -> None:
        def sync(order: OrderPlaced) -> Iterator[int]:
            yield 1

        async def not_sync(order: OrderPlaced) -> AsyncIterator[int]:
            yield 1

        class Lazy:
            def __call__(self, order: OrderPlaced) -> Iterator[int]:
                yield 1

        for function in (sync, not_sync, Lazy()):
            assert "is a generator; a handler returns None or a settlement" in refused(function)

    def test_an_async_handler_inside_a_plain_function_is_refused_at_start(self) -> None:
        """It would run in a thread, return a coroutine, and put every message into the dead letters."""

        async def handler(order: OrderPlaced) -> None: ...

        @functools.wraps(handler)
        def wrapper(*args: Any) -> Any:
            return handler(*args)

        assert "is an 'async def' inside a plain function; make what wraps it async" in refused(wrapper)
        assert "is an 'async def' inside a plain function" in refused(vars(Charger)["static"])


class TestWrongSignatures:
    def test_no_annotation(self) -> None:
        async def handler(order) -> None: ...  # type: ignore[no-untyped-def] # noqa: ANN001 # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]

        said = refused(handler)

        assert f"handler {__name__}.TestWrongSignatures" in said
        assert "parameter 'order' has no annotation; annotate it with the payload model" in said

    def test_a_method_taken_from_its_class_has_a_parameter_without_annotation(self) -> None:
        assert "parameter 'self' has no annotation" in refused(Charger.method)

    def test_two_payloads(self) -> None:
        async def handler(order: OrderPlaced, other: Placed) -> None: ...

        assert "parameter 'other' is a second payload beside OrderPlaced; a handler takes one" in refused(
            handler
        )

    def test_two_payloads_one_in_an_event(self) -> None:
        async def handler(order: list[int], event: Event[Placed]) -> None: ...

        assert "parameter 'event' is a second payload beside list[int]" in refused(handler)

    def test_any_arguments(self) -> None:
        async def many(*orders: OrderPlaced) -> None: ...
        async def named(**orders: OrderPlaced) -> None: ...

        assert "parameter 'orders' takes any arguments; name them" in refused(many)
        assert "parameter 'orders' takes any arguments; name them" in refused(named)

    @pytest.mark.parametrize("annotation", ["Nowhere", "asyncio.Nowhere", "a b", "7[0]"])
    def test_an_annotation_that_cannot_be_resolved(self, annotation: str) -> None:
        async def handler(order: Any) -> None: ...

        handler.__annotations__["order"] = annotation

        assert "an annotation cannot be resolved" in refused(handler)

    def test_a_type_variable(self) -> None:
        async def bare(order: Any) -> None: ...
        async def inside(event: Any) -> None: ...

        bare.__annotations__["order"] = T
        inside.__annotations__["event"] = Event[T]  # type: ignore[valid-type] # pyright: ignore[reportGeneralTypeIssues]

        assert "parameter 'order' has a type variable; name the model" in refused(bare)
        assert "parameter 'event' has a type variable" in refused(inside)

    def test_a_model_that_the_codec_cannot_use(self) -> None:
        async def handler(order: Connection) -> None: ...

        with pytest.raises(SignatureError, match="Connection cannot be used as a payload model"):
            Bound(handler)


class Closes(Protocol):
    def close(self) -> None: ...


class TestState:
    @staticmethod
    def checked(hint: Any, state: Mapping[str, Any]) -> None:
        async def handler(db: Any) -> None: ...

        handler.__annotations__["db"] = hint
        Endpoint.inspect(handler, ()).check_state(state)

    def test_the_value_under_the_parameters_name_is_of_the_class(self) -> None:
        self.checked(State[Database], {"db": Database(), "other": 1})
        self.checked(State[Database], {"db": Wider()})

    def test_what_is_missing_is_named_with_what_there_is(self) -> None:
        with pytest.raises(
            ConfigurationError, match=r"nothing to give for 'db'; the lifespan yielded \['a', 'b'\]"
        ):
            self.checked(State[Database], {"b": 1, "a": 2})
        with pytest.raises(
            ConfigurationError, match="nothing to give for 'db'; the lifespan yielded nothing"
        ):
            self.checked(State[Database], {})

    def test_another_class_is_named(self) -> None:
        with pytest.raises(ConfigurationError, match="'db' is int, not Database"):
            self.checked(State[Database], {"db": 7})

    ALIAS: Any = State
    HINTS: Sequence[Any] = (ALIAS[Any], ALIAS[int | None], ALIAS[list[int]], ALIAS[Closes])

    @pytest.mark.parametrize("hint", HINTS, ids=repr)
    def test_what_cannot_be_asked_is_believed(self, hint: Any) -> None:
        self.checked(hint, {"db": 7})

    def test_so_is_one_without_a_class(self) -> None:
        self.checked(State, {"db": 7})

    def test_more_metadata_beside_the_marker_does_no_harm(self) -> None:
        class Odd:
            def __eq__(self, other: object) -> bool:
                raise ValueError

            __hash__ = None  # type: ignore[assignment]

        self.checked(Annotated[State[Database], Odd()], {"db": Database()})
        with pytest.raises(ConfigurationError):
            self.checked(Annotated[Database, Odd(), State[int].__metadata__[0]], {})  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("OrderPlaced", "order.placed"),
        ("Order", "order"),
        ("order", "order"),
        ("HTTPError", "http.error"),
        ("OrderHTTP", "order.http"),
        ("HTTP", "http"),
        ("OrderV2", "order.v2"),
        ("OrderPlacedV2", "order.placed.v2"),
        ("HTTP2Server", "http2.server"),
        ("S3Bucket", "s3.bucket"),
        ("AThing", "a.thing"),
        ("eBay", "e.bay"),
        ("order_placed", "order_placed"),
        ("Order_Placed", "order.placed"),
        ("_Private", "private"),
        ("GrößeÄnderung", "größe.änderung"),
        ("Page[int]", "page"),
        ("_", None),
        ("__", None),
    ],
)
def test_the_type_of_an_event_is_the_class_name_in_dotted_lower_case(name: str, word: str | None) -> None:
    assert type_of(type(name, (), {})) == word


@pytest.mark.parametrize(
    "plain", [None, dict, bytes, str, int, list[int], OrderPlaced | None, Any, 7, Annotated[int, 1]]
)
def test_plain_types_aliases_and_unions_stand_for_no_type(plain: Any) -> None:
    assert type_of(plain) is None


def test_what_fills_a_generic_model_plays_no_part() -> None:
    assert type_of(Page[int]) == type_of(Page) == "page"
    assert type_of(PlacedStruct) == "placed.struct"


class TestResults:
    @pytest.mark.parametrize("settlement", [ACK, Ack(), Retry(5, "later"), DeadLetter("no", "way")])
    @pytest.mark.parametrize("how", ["returned", "raised", "raised past except"])
    async def test_a_settlement_is_returned_or_raised(self, settlement: Settlement, how: str) -> None:
        async def handler(order: OrderPlaced) -> Settlement:
            if how == "returned":
                return settlement
            if how == "raised":
                raise Settle(settlement)
            try:
                raise Settle(settlement)  # noqa: TRY301
            except Exception:  # noqa: BLE001
                return DeadLetter("swallowed")

        assert await Bound(handler)() == settlement

    @pytest.mark.parametrize("result", [0, False, "", True, [], Ack, Settle(ACK), {"a": 1}], ids=repr)
    async def test_anything_else_is_an_error_that_names_the_handler(self, result: object) -> None:
        async def handler() -> Any:
            return result

        with pytest.raises(
            HandlerResultError, match=rf"handler .*handler returned {type(result).__name__}; return None"
        ):
            await Bound(handler)()

    async def test_a_coroutine_that_nobody_awaited_is_named_so(self) -> None:
        async def later() -> None: ...

        def handler() -> Any:
            return later()

        with pytest.raises(HandlerResultError, match="returned coroutine; await it"):
            await Bound(handler)()

    async def test_an_error_of_the_handler_passes_untouched(self) -> None:
        error = LookupError("mine")

        async def handler() -> None:
            raise error

        with pytest.raises(LookupError) as caught:
            await Bound(handler)()
        assert caught.value is error

    async def test_an_unreadable_envelope_is_a_decode_error(self) -> None:
        async def handler(event: Event[bytes]) -> None: ...

        broken = Message(body=b"{", content_type="application/cloudevents+json")
        with pytest.raises(DecodeError):
            await Bound(handler)(arrival(broken))

    @pytest.mark.parametrize("data", [b"", b"{", b"null", b'{"n":"x"}', b'{"n":NaN}', b"\xff"])
    async def test_b1_b2_b16_data_that_does_not_fit_is_a_decode_error_and_no_call(self, data: bytes) -> None:
        async def handler(order: OrderPlaced) -> None:
            raise AssertionError

        message = Message(
            body=data,
            content_type="application/json",
            headers=(("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "s"), ("ce-type", "t")),
        )
        with pytest.raises(DecodeError):
            await Bound(handler)(arrival(message))

    async def test_b22_a_wait_that_is_no_number_fails_the_handling(self) -> None:
        async def handler() -> Settlement:
            return Retry(after=float("inf"))

        with pytest.raises(ValueError, match="finite"):
            await Bound(handler)()


class TestOutputs:
    """What was published is sent when the handler has succeeded, and belongs to one attempt."""

    @staticmethod
    def rig(result: Any) -> tuple[Bound, list[Any]]:
        flushed: list[Any] = []

        async def handler(delivery: Delivery) -> Any:
            assert delivery.handling
            delivery.extra = {**(delivery.extra or {}), "outputs": ["new"]}
            if isinstance(result, Exception):
                raise result
            return result

        async def flush(delivery: Delivery) -> None:
            assert delivery.extra is not None
            flushed.extend([*delivery.extra["outputs"], delivery.handling])

        return Bound(handler, flush=flush), flushed

    @pytest.mark.parametrize("result", [None, ACK])
    async def test_they_are_flushed_before_the_ack_is_returned(self, result: Any) -> None:
        bound, flushed = self.rig(result)

        assert await bound() is ACK
        assert flushed == ["new", False]

    @pytest.mark.parametrize("result", [Retry(), DeadLetter("no"), ValueError(), "odd"])
    async def test_they_are_not_when_it_did_not_succeed(self, result: Any) -> None:
        bound, flushed = self.rig(result)
        delivery = arrival()

        with contextlib.suppress(ValueError, HandlerResultError):
            await bound(delivery)
        assert flushed == []
        assert not delivery.handling

    async def test_those_of_an_attempt_that_failed_are_forgotten_by_the_next(self) -> None:
        bound, flushed = self.rig(None)
        delivery = arrival()
        delivery.extra = {"outputs": ["of an earlier attempt"], "ordinals": {b"": 1}, "kept": 1}

        await bound(delivery)

        assert flushed == ["new", False]
        assert "ordinals" not in delivery.extra
        assert delivery.extra["kept"] == 1

    async def test_a_flush_that_fails_fails_the_attempt(self) -> None:
        async def handler(delivery: Delivery) -> None:
            delivery.extra = {"outputs": []}

        async def flush(delivery: Delivery) -> None:
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await Bound(handler, flush=flush)()


def this_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None
    return task


class TestCancellation:
    @pytest.mark.parametrize("error", [SystemExit(3), Cut(), asyncio.CancelledError()], ids=repr)
    async def test_b28_what_is_no_exception_is_a_failed_handling_that_names_it(
        self, error: BaseException
    ) -> None:
        async def handler() -> None:
            raise error

        word = (
            "was cancelled, and not by brokerkit"
            if isinstance(error, asyncio.CancelledError)
            else type(error).__name__
        )
        with pytest.raises(HandlerCancelled, match=word) as caught:
            await Bound(handler)()
        assert caught.value.__cause__ is error

    @pytest.mark.parametrize(
        "error", [SystemExit(3), Cut(), asyncio.CancelledError(), GeneratorExit()], ids=repr
    )
    async def test_when_brokerkit_has_asked_for_a_stop_it_passes(self, error: BaseException) -> None:
        async def handler(delivery: Delivery) -> None:
            delivery.stopped = "drain"
            raise error

        with pytest.raises(type(error)):
            await Bound(handler)()

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit()], ids=repr)
    async def test_what_ends_the_process_or_the_coroutine_always_passes(self, error: BaseException) -> None:
        async def handler() -> None:
            raise error

        with pytest.raises(type(error)):
            await Bound(handler)()

    async def test_a_coroutine_that_is_thrown_away_closes(self) -> None:
        async def handler() -> None:
            await asyncio.sleep(0)

        bound = Bound(handler)
        running: Any = bound()
        running.send(None)
        running.close()

    async def test_a_handler_that_cancels_itself_and_waits_has_failed_and_leaves_nothing_behind(self) -> None:
        async def handler() -> None:
            this_task().cancel()
            await asyncio.sleep(0)

        with pytest.raises(HandlerCancelled):
            await Bound(handler)()
        assert this_task().cancelling() == 0
        await asyncio.sleep(0)

    async def test_one_that_asks_twice_leaves_nothing_behind_either(self) -> None:
        async def handler() -> None:
            task = this_task()
            task.cancel()
            try:
                await asyncio.sleep(0)
            finally:
                task.cancel()

        with pytest.raises(HandlerCancelled):
            await Bound(handler)()
        await asyncio.sleep(0)
        assert this_task().cancelling() == 0

    async def test_one_that_cancels_itself_and_returns_acks_and_its_outputs_are_sent(self) -> None:
        """The cancellation that stands must not hit what comes next: the send, the commit."""
        flushed: list[str] = []

        async def handler(delivery: Delivery) -> None:
            delivery.extra = {"outputs": []}
            this_task().cancel()

        async def flush(delivery: Delivery) -> None:
            await asyncio.sleep(0)
            flushed.append("sent")

        assert await Bound(handler, flush=flush)() is ACK
        assert flushed == ["sent"]
        assert this_task().cancelling() == 0

    async def test_a_stop_that_comes_while_a_leftover_is_taken_back_is_not_swallowed(self) -> None:
        async def handler(delivery: Delivery) -> None:
            this_task().cancel()
            asyncio.get_running_loop().call_soon(setattr, delivery, "stopped", "drain")

        with pytest.raises(asyncio.CancelledError):
            await Bound(handler)()

    async def test_a_handler_that_finishes_in_spite_of_a_stop_is_left_to_the_engine(self) -> None:
        async def handler(delivery: Delivery) -> None:
            delivery.stopped = "drain"
            this_task().cancel()

        assert await Bound(handler)() is ACK
        assert this_task().cancelling() == 1
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
        this_task().uncancel()

    @pytest.mark.parametrize("nested", [False, True])
    async def test_a_settlement_raised_in_a_task_group_settles(self, nested: bool) -> None:
        async def child() -> None:
            raise Settle(Retry(7))

        async def handler() -> None:
            async with asyncio.TaskGroup() as outer:
                if not nested:
                    outer.create_task(child())
                    return
                async with asyncio.TaskGroup() as inner:
                    inner.create_task(child())

        assert await Bound(handler)() == Retry(7)

    @pytest.mark.parametrize(
        "errors", [[Settle(ACK), Cut()], [Cut()], [Settle(ACK), Settle(Retry())]], ids=len
    )
    async def test_a_group_of_anything_else_is_a_failed_handling(self, errors: list[BaseException]) -> None:
        group = BaseExceptionGroup("several", errors)

        async def handler() -> None:
            raise group

        with pytest.raises(HandlerCancelled, match="raised BaseExceptionGroup"):
            await Bound(handler)()


class TestThreads:
    async def test_a_def_handler_runs_in_the_pool_in_the_context_of_its_handling(self) -> None:
        seen: list[Any] = []

        def handler(delivery: Delivery) -> None:
            seen.extend([current() is delivery, threading.current_thread() is threading.main_thread()])

        delivery = arrival()
        token = CURRENT.set(delivery)
        try:
            await Bound(handler)(delivery)
        finally:
            CURRENT.reset(token)
        assert seen == [True, False]

    @pytest.mark.parametrize("result", [None, Retry(3), DeadLetter("no")])
    async def test_what_it_returns_or_raises_settles(self, result: Settlement | None) -> None:
        def returning() -> Settlement | None:
            return result

        def raising() -> None:
            raise Settle(result or ACK)

        assert await Bound(returning)() == (result or ACK)
        assert await Bound(raising)() == (result or ACK)

    @pytest.mark.parametrize("error", [SystemExit(), Cut(), asyncio.CancelledError()], ids=repr)
    async def test_what_is_no_exception_is_a_failed_handling(self, error: BaseException) -> None:
        def handler() -> None:
            raise error

        with pytest.raises(HandlerCancelled):
            await Bound(handler)()

    async def test_a_stop_iteration_fails_the_handling_and_does_not_hang_it(self) -> None:
        def handler() -> None:
            next(iter(()))

        with pytest.raises(RuntimeError, match="the handler raised StopIteration"):
            await asyncio.wait_for(Bound(handler)(), 5)

    @pytest.mark.parametrize("ends", ["returns", "raises"])
    async def test_cancelled_it_keeps_its_slot_until_the_thread_has_returned(self, ends: str) -> None:
        began, go_on = threading.Event(), threading.Event()

        def handler() -> None:
            began.set()
            assert go_on.wait(10)
            if ends == "raises":
                raise LookupError

        delivery = arrival()
        task = asyncio.create_task(Bound(handler)(delivery))
        await asyncio.to_thread(began.wait, 10)
        delivery.stopped = "timeout"
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not task.done()
            assert delivery.handling
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not delivery.handling
