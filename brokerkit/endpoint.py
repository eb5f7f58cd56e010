"""
The innermost handler: decode the data, call the user's function, turn what it returns into a settlement.

A function's parameters are resolved from its annotations once, at decoration. Nothing is looked up by name at run time
but what a lifespan has yielded.
"""

import asyncio
import functools
import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Annotated, Any, TypeVar, cast

from brokerkit.codec import Codec
from brokerkit.context import absorb_cancellation
from brokerkit.delivery import Delivery
from brokerkit.errors import (
    ConfigurationError,
    DecodeError,
    HandlerCancelled,
    HandlerResultError,
    SignatureError,
)
from brokerkit.event import Event
from brokerkit.pipeline import Handler, Pattern, Provides
from brokerkit.settlement import ACK, Ack, DeadLetter, Retry, Settle, Settlement

__all__ = ["Endpoint", "State"]

T = TypeVar("T")
Argument = Callable[[Delivery], Any]
Flush = Callable[[Delivery], Awaitable[None]]


class _StateMarker:
    """Marks a parameter that the bus's lifespan fills."""


_STATE = _StateMarker()
State = Annotated[T, _STATE]
"""`db: State[Database]`: what the lifespan yielded under the parameter's name, or the yielded object itself."""


@dataclass(slots=True, eq=False)
class Endpoint:
    """
    A user's function, inspected.

    name: module and qualified name, for messages. model: what the data is decoded to, or None if no parameter wants
    it. blocking: a `def`, which runs in a thread. states: names of the parameters that the lifespan fills.
    """

    function: Callable[..., Any]
    name: str
    model: Any
    blocking: bool
    states: dict[str, Any] = field(default_factory=dict[str, Any])
    provided: dict[str, type[Any]] = field(default_factory=dict[str, type[Any]])
    _roles: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    _positional: int = 0

    @classmethod
    def inspect(cls, function: Callable[..., Any], patterns: Sequence[Pattern]) -> "Endpoint":
        """
        Resolve a function's parameters.

        A function is anything that can be called: `async def`, `def`, a method, an object with `__call__`, a
        `functools.partial`, whose keywords are left as they are. A parameter with a default that would be another
        payload is the function's own: it is left alone.

        Raises `SignatureError` that names handler and parameter: no annotation, more than one payload, a payload with a
        default, `*args`, a generator, or an annotation that cannot be resolved.
        """
        target = _target(function)
        name = _name_of(target)
        if inspect.isasyncgenfunction(target) or inspect.isgeneratorfunction(target):
            message = f"handler {name} is a generator; a handler returns None or a settlement"
            raise SignatureError(message)
        blocking = not inspect.iscoroutinefunction(target)
        if blocking and inspect.iscoroutinefunction(inspect.unwrap(target)):
            message = f"handler {name} is an 'async def' inside a plain function; make what wraps it async"
            raise SignatureError(message)
        endpoint = cls(function=function, name=name, model=None, blocking=blocking)
        endpoint._resolve(patterns)
        return endpoint

    def _resolve(self, patterns: Sequence[Pattern]) -> None:
        provided: dict[type[Any], str] = {}
        for pattern in patterns:
            if isinstance(pattern, Provides):
                provided.update(pattern.provides)
        hints = self._hints()
        own: list[str] = []
        in_order = True
        for parameter in _parameters(self.function):
            role = self._role_of(parameter, hints, provided)
            if role is None:
                own.append(parameter.name)
                in_order = False
                continue
            in_order = in_order and parameter.kind is not Parameter.KEYWORD_ONLY
            self._positional += in_order
            self._roles.append((parameter.name, role))
        if own and self.model is None:
            self._refuse(own[0], "has a default and would never be filled; take the default away")

    def _role_of(
        self, parameter: Parameter, hints: Mapping[str, Any], provided: Mapping[type[Any], str]
    ) -> str | None:
        """Return what a parameter is filled with, or None if it has a default and is the function's own."""
        if parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            self._refuse(parameter.name, "takes any arguments; name them")
        has_default = parameter.default is not Parameter.empty
        hint = hints.get(parameter.name, Parameter.empty)
        role = None if hint is Parameter.empty else self._role(parameter.name, hint, provided)
        if role is None and not has_default:
            self._refuse(
                parameter.name,
                "has no annotation; annotate it with the payload model, Event[...] or Delivery",
            )
        if role == "data":
            if has_default:
                return None
            self._take_model(parameter.name, hint)
        return role

    def _hints(self) -> dict[str, Any]:
        try:
            return typing.get_type_hints(_target(self.function), include_extras=True)
        except Exception as error:
            message = (
                f"handler {self.name}: an annotation cannot be resolved ({error}); import it at run time"
            )
            raise SignatureError(message) from error

    def _role(self, name: str, hint: Any, provided: Mapping[type[Any], str]) -> str:
        if hint is Delivery:
            return "delivery"
        if isinstance(hint, type) and hint in provided:
            self.provided[name] = hint
            return f"extra:{provided[hint]}"
        parts = typing.get_args(hint)
        if typing.get_origin(hint) is Annotated and any(mark is _STATE for mark in parts[1:]):
            self.states[name] = parts[0]
            return f"state:{name}"
        if hint is Event or typing.get_origin(hint) is Event:
            self._take_model(name, (parts or (bytes,))[0])
            return "event"
        return "data"

    def _take_model(self, name: str, model: Any) -> None:
        if isinstance(model, TypeVar):
            self._refuse(name, "has a type variable; name the model")
        if self.model is not None and self.model != model:
            self._refuse(name, f"is a second payload beside {_shown(self.model)}; a handler takes one")
        self.model = model

    def _refuse(self, name: str, why: str) -> None:
        message = f"handler {self.name}: parameter {name!r} {why}"
        raise SignatureError(message)

    @property
    def type_name(self) -> str | None:
        """Return the event type that the model stands for: its class name in dotted lower case, or None for plain types."""
        return type_of(self.model)

    def bind(
        self, codec: Codec, executor: Callable[[], Executor], state: Mapping[str, Any], flush: Flush
    ) -> Handler:
        """Return the handler that decodes, calls, sends what was published meanwhile, and settles."""
        decode = self._decoder(codec)
        arguments = [self._argument(role, decode, state) for _, role in self._roles]
        positional = self._positional
        names = [name for name, _ in self._roles[positional:]]
        call = _in_thread(self.function, executor) if self.blocking else self.function

        async def endpoint(delivery: Delivery) -> Settlement:
            if delivery.extra is not None:  # an earlier attempt may have published, and then failed
                delivery.extra.pop("outputs", None)
                delivery.extra.pop("ordinals", None)
            values = [argument(delivery) for argument in arguments]
            delivery.handling = True
            try:
                if names:
                    named = dict(zip(names, values[positional:], strict=True))
                    result = await call(*values[:positional], **named)
                else:
                    result = await call(*values)
            except Exception:
                raise
            except BaseException as error:  # noqa: BLE001 - sorted out in _ended
                result = await self._ended(delivery, error)
            finally:
                delivery.handling = False
            task = asyncio.current_task()
            if task is not None and task.cancelling() and delivery.stopped is None:
                await _absorb(delivery, task)
            if result is None or type(result) is Ack:
                if delivery.extra is not None and "outputs" in delivery.extra:
                    await flush(delivery)
                return ACK
            if isinstance(result, Retry | DeadLetter):
                return result
            raise self._wrong(result)

        return endpoint

    async def _ended(self, delivery: Delivery, error: BaseException) -> Settlement:
        """
        Sort out what is no `Exception`: a settlement that was raised, a stop, or a failed handling like others.

        A handler that ends itself by `SystemExit`, a cancellation of its own or a panic of a library in Rust must count
        as failed, or its message would come back uncounted and for ever.
        """
        if (settlement := _settled_in(error)) is not None:
            return settlement
        if isinstance(error, KeyboardInterrupt | GeneratorExit) or delivery.stopped is not None:
            raise error
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            await _absorb(delivery, task)
        how = (
            "was cancelled, and not by brokerkit"
            if isinstance(error, asyncio.CancelledError)
            else f"raised {type(error).__name__}"
        )
        message = f"handler {self.name} {how}"
        raise HandlerCancelled(message) from error

    def _wrong(self, result: object) -> HandlerResultError:
        advice = "return None or a settlement"
        if inspect.iscoroutine(result):
            result.close()
            advice = "await it"
        message = f"handler {self.name} returned {type(result).__name__}; {advice}"
        return HandlerResultError(message)

    def _decoder(self, codec: Codec) -> Callable[[bytes], Any]:
        if self.model is None:
            return bytes
        try:
            return codec.decoder(self.model)
        except Exception as error:
            message = f"handler {self.name}: {_shown(self.model)} cannot be used as a payload model: {error}"
            raise SignatureError(message) from error

    def _argument(self, role: str, decode: Callable[[bytes], Any], state: Mapping[str, Any]) -> Argument:
        kind, _, name = role.partition(":")
        if kind == "delivery":
            return _delivery
        if kind == "extra":
            return functools.partial(_extra, name)
        if kind == "state":
            return functools.partial(_state, state, name)
        if kind == "event":
            return functools.partial(_event, decode)
        return _payload(decode)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise `ConfigurationError` for a parameter that the lifespan did not fill, or filled with another class."""
        for name, wanted in self.states.items():
            if name not in state:
                message = f"handler {self.name}: nothing to give for {name!r}; the lifespan yielded {sorted(state) or 'nothing'}"
                raise ConfigurationError(message)
            if not _is_a(state[name], wanted):
                message = (
                    f"handler {self.name}: {name!r} is {type(state[name]).__name__}, not {wanted.__name__}"
                )
                raise ConfigurationError(message)


def type_of(model: Any) -> str | None:
    """
    Return the event type of a model: `OrderPlaced` is `order.placed`, whatever module it lives in.

    An acronym is one word (`HTTPError` is `http.error`), digits belong to the word before them (`OrderV2` is `order.v2`),
    and what fills a generic model plays no part (`Page[Order]` is `page`). None for plain types (dict, bytes, str, ...),
    aliases such as `list[Order]` and unions: they stand for no type of event.
    """
    if not isinstance(model, type) or isinstance(model, types.GenericAlias):
        return None
    if model.__module__ in ("builtins", "typing"):
        return None
    name = model.__name__.partition("[")[0]
    words = [""]
    for at, character in enumerate(name):
        if character.isupper() and not (name[:at][-1:].isupper() and not name[at + 1 : at + 2].islower()):
            words.append("")
        words[-1] += character
    return ".".join(word.strip("_").lower() for word in words if word.strip("_")) or None


def _target(function: Any) -> Any:
    """Return what has the annotations and is async or not: the function itself, below partials, or an object's call."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function):
        return function
    if isinstance(function, type) or not callable(function):
        message = f"{function!r} is no handler; give a function, a method or an object that can be called"
        raise SignatureError(message)
    return type(function).__call__


def _name_of(target: Any) -> str:
    name: str = getattr(target, "__qualname__", repr(target))
    return f"{getattr(target, '__module__', '?')}.{name.removesuffix('.__call__')}"


def _parameters(function: Any) -> list[Parameter]:
    """Return the parameters that are left to fill, less what a partial gives by keyword."""
    parameters = inspect.signature(function).parameters.values()
    given = set(function.keywords) if isinstance(function, functools.partial) else set[str]()
    return [parameter for parameter in parameters if parameter.name not in given]


def _is_a(value: object, wanted: Any) -> bool:
    """Say whether a value is of a class; what cannot be asked (a plain protocol, a generic) is believed."""
    try:
        return not isinstance(wanted, type) or isinstance(value, wanted)
    except TypeError:
        return True


def _shown(model: Any) -> str:
    return model.__name__ if isinstance(model, type) else repr(model)


def _delivery(delivery: Delivery) -> Delivery:
    return delivery


def _extra(name: str, delivery: Delivery) -> Any:
    return (delivery.extra or {})[name]


def _state(state: Mapping[str, Any], name: str, _: Delivery) -> Any:
    return state[name]


def _payload(decode: Callable[[bytes], Any]) -> Argument:
    def payload(delivery: Delivery) -> Any:
        event = delivery.event
        return decode(event.data if event.error is None else _readable(delivery).data)

    return payload


def _event(decode: Callable[[bytes], Any], delivery: Delivery) -> Event[Any]:
    event = _readable(delivery)
    return event.with_data(decode(event.data))


def _readable(delivery: Delivery) -> Event[bytes]:
    event = delivery.event
    if event.error is not None:
        raise DecodeError(event.error)
    return event


async def _absorb(delivery: Delivery, task: asyncio.Task[Any]) -> None:
    """
    Take back a cancellation that a handler has left behind; it would hit the commit or the send that comes next.

    Raises `CancelledError` if brokerkit has asked for a stop meanwhile: that one is not the handler's.
    """
    await absorb_cancellation(task)
    if delivery.stopped is not None:
        raise asyncio.CancelledError


def _settled_in(error: BaseException) -> Settlement | None:
    """Return the settlement that was raised, or that one task of a `TaskGroup` has raised if the group holds nothing else."""
    if isinstance(error, Settle):
        return error.settlement
    if not isinstance(error, BaseExceptionGroup):
        return None
    (first, *others) = cast("BaseExceptionGroup[BaseException]", error).exceptions
    return None if others else _settled_in(first)


def _in_thread(
    function: Callable[..., Any], executor: Callable[[], Executor]
) -> Callable[..., Awaitable[Any]]:
    """
    Run a `def` handler in the pool, in the context of its handling.

    Cancelled, it waits until the thread has returned, for a thread cannot be stopped: slot and lease stay taken. The
    cancellation is raised then, whatever the function returned.
    """

    async def call(*args: Any, **kwargs: Any) -> Any:
        context = copy_context()
        work = functools.partial(_called, function, args, kwargs)
        future = asyncio.get_running_loop().run_in_executor(executor(), context.run, work)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            future.exception()
            raise cancelled
        return future.result()

    return call


def _called(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return function(*args, **kwargs)
    except StopIteration as error:
        # no future can carry it: the handler would never be seen to end
        message = "the handler raised StopIteration"
        raise RuntimeError(message) from error
