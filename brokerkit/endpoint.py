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
from typing import Annotated, Any, TypeVar

from brokerkit.codec import Codec
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
    states: dict[str, Any] = field(default_factory=dict)
    provided: dict[str, type[Any]] = field(default_factory=dict)
    _roles: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def inspect(cls, function: Callable[..., Any], patterns: Sequence[Pattern]) -> "Endpoint":
        """
        Resolve a function's parameters.

        Raises `SignatureError` that names handler and parameter: no annotation, more than one payload, `*args`, an
        async generator, or an annotation that cannot be resolved.
        """
        name = f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            message = f"handler {name} is a generator; a handler returns None or a settlement"
            raise SignatureError(message)
        call = function if inspect.isroutine(function) else type(function).__call__
        blocking = not inspect.iscoroutinefunction(call)
        endpoint = cls(function=function, name=name, model=None, blocking=blocking)
        endpoint._resolve(patterns)
        return endpoint

    def _resolve(self, patterns: Sequence[Pattern]) -> None:
        provided: dict[type[Any], str] = {}
        for pattern in patterns:
            if isinstance(pattern, Provides):
                provided.update(pattern.provides)
        hints = self._hints()
        for parameter in inspect.signature(self.function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                self._refuse(parameter.name, "takes any arguments; name them")
            if parameter.name not in hints:
                self._refuse(
                    parameter.name,
                    "has no annotation; annotate it with the payload model, Event[...] or Delivery",
                )
            self._roles.append((parameter.name, self._role(parameter.name, hints[parameter.name], provided)))

    def _hints(self) -> dict[str, Any]:
        target: Any = self.function if inspect.isroutine(self.function) else type(self.function).__call__
        try:
            return typing.get_type_hints(target, include_extras=True)
        except (NameError, TypeError) as error:
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
        if typing.get_origin(hint) is Annotated and _STATE in hint.__metadata__:
            self.states[name] = typing.get_args(hint)[0]
            return f"state:{name}"
        if hint is Event or typing.get_origin(hint) is Event:
            self._take_model(name, (typing.get_args(hint) or (bytes,))[0])
            return "event"
        self._take_model(name, hint)
        return "data"

    def _take_model(self, name: str, model: Any) -> None:
        if isinstance(model, TypeVar):
            self._refuse(name, "has a type variable; name the model")
        if self.model is not None and self.model is not model:
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
        names = [name for name, _ in self._roles]
        positional = self._positional(names)
        call = _in_thread(self.function, executor) if self.blocking else self.function

        async def endpoint(delivery: Delivery) -> Settlement:
            if delivery.extra is not None:  # an earlier attempt may have published, and then failed
                delivery.extra.pop("outputs", None)
                delivery.extra.pop("ordinals", None)
            values = [argument(delivery) for argument in arguments]
            try:
                if positional:
                    result = await call(*values)
                else:
                    result = await call(**dict(zip(names, values, strict=True)))
            except Settle as settle:
                result = settle.settlement
            except asyncio.CancelledError as error:
                if delivery.stopped is not None:
                    raise
                _clear_cancellation()
                message = f"handler {self.name} was cancelled, and not by brokerkit"
                raise HandlerCancelled(message) from error
            except (SystemExit, GeneratorExit) as error:
                if delivery.stopped is not None:
                    raise
                message = f"handler {self.name} raised {type(error).__name__}"
                raise HandlerCancelled(message) from error
            if result is None or type(result) is Ack:
                if delivery.extra is not None and "outputs" in delivery.extra:
                    await flush(delivery)
                return ACK
            if isinstance(result, Retry | DeadLetter):
                return result
            message = f"handler {self.name} returned {type(result).__name__}; return None or a settlement"
            raise HandlerResultError(message)

        return endpoint

    def _positional(self, names: Sequence[str]) -> bool:
        parameters = inspect.signature(self.function).parameters
        return all(parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY for name in names)

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
        return functools.partial(_payload, decode)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise `ConfigurationError` for a parameter that the lifespan did not fill, or filled with another class."""
        for name, wanted in self.states.items():
            if name not in state:
                message = f"handler {self.name}: nothing to give for {name!r}; the lifespan yielded {sorted(state) or 'nothing'}"
                raise ConfigurationError(message)
            if isinstance(wanted, type) and not isinstance(state[name], wanted):
                message = (
                    f"handler {self.name}: {name!r} is {type(state[name]).__name__}, not {wanted.__name__}"
                )
                raise ConfigurationError(message)


def type_of(model: Any) -> str | None:
    """
    Return the event type of a model: `OrderPlaced` is `order.placed`, whatever module it lives in.

    None for plain types (dict, bytes, str, ...), generics and unions: they stand for no type of event.
    """
    if not isinstance(model, type) or model.__module__ == "builtins" or isinstance(model, types.GenericAlias):
        return None
    words: list[str] = []
    for character in model.__name__.partition("[")[0]:
        if character.isupper() and (not words or not words[-1][-1].isupper()):
            words.append(character)
        elif words:
            words[-1] += character
        else:
            words.append(character)
    return ".".join(word.strip("_").lower() for word in words if word.strip("_"))


def _shown(model: Any) -> str:
    return model.__name__ if isinstance(model, type) else repr(model)


def _delivery(delivery: Delivery) -> Delivery:
    return delivery


def _extra(name: str, delivery: Delivery) -> Any:
    return (delivery.extra or {})[name]


def _state(state: Mapping[str, Any], name: str, _: Delivery) -> Any:
    return state[name]


def _payload(decode: Callable[[bytes], Any], delivery: Delivery) -> Any:
    return decode(_readable(delivery).data)


def _event(decode: Callable[[bytes], Any], delivery: Delivery) -> Event[Any]:
    event = _readable(delivery)
    return event.with_data(decode(event.data))


def _readable(delivery: Delivery) -> Event[bytes]:
    event = delivery.event
    if event.error is not None:
        raise DecodeError(event.error)
    return event


def _clear_cancellation() -> None:
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


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
        work = functools.partial(context.run, function, *args, **kwargs)
        future = asyncio.get_running_loop().run_in_executor(executor(), work)
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
