"""
Retry: what a failed handling becomes, an other try or a dead letter, and when.

Only the decision lives here. The copies of a counted retry are the settler's, the lanes of `order="key"` the engine's.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, cast

from tenacity import RetryCallState, Retrying, wait
from tenacity.wait import WaitBaseT

from brokerkit.clock import SYSTEM, Clock
from brokerkit.delivery import Delivery
from brokerkit.errors import BrokerkitError, Closed, ConfigurationError, DecodeError
from brokerkit.pipeline import Handler, Place
from brokerkit.settlement import Ack, DeadLetter, Retry, Settle, Settlement
from brokerkit.story import Failure, clean

__all__ = ["RetryPattern", "longest_wait", "retry"]

Errors = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]
Rule = Ack | Retry | DeadLetter | Callable[[Any], Settlement | None]

_log = logging.getLogger("brokerkit.retry")

LONGEST: Final = 12 * 3600.0
"""The longest wait in seconds, whatever a strategy says: no broker of ours keeps a message back for longer."""

_MOST_ATTEMPTS: Final = 1_000_000
_STORY: Final = 32
_DEFAULT_WAIT: Final = wait.wait_random_exponential(multiplier=1, max=300)
_RETRYING: Final = Retrying()


def retry(
    attempts: int | None = 8,
    *,
    on: Errors = Exception,
    give_up_on: Errors = (),
    deadline: float | None = None,
    wait: WaitBaseT = _DEFAULT_WAIT,
    rules: Mapping[type[Exception], Rule] | None = None,
    in_place: float = 1.0,
    clock: Clock = SYSTEM,
) -> "RetryPattern":
    """
    Try a failed handling again, later and not for ever; then make it a dead letter.

    attempts: how many handlings may fail before the message is a dead letter; None for no limit, which needs a `deadline`.
    on: what is tried again: an exception class, a tuple of them, or a predicate. Anything else is a dead letter at once
        (`unrecoverable`). Errors of brokerkit's own know whether they may pass (`retryable`), and a timeout is always tried
        again. A group of exceptions is tried again if every one in it is.
    give_up_on: what is not tried again although `on` matches.
    deadline: seconds since the message first arrived at this group (in this run). A wait is cut so that the last
        try starts when it is over, not later.
    wait: a wait strategy of tenacity's, asked with the attempt that failed; full jitter over 1, 2, 4 ... 300 s without.
        Whatever it answers, the wait is between 0 and 12 hours.
    rules: a settlement for a class of exceptions, or a function from the exception to one; the most
        derived class wins, before everything else. A function that returns None leaves it to the rest.
    in_place: with `order="none"`, waits shorter than these seconds keep the slot and call the handler again at once
        after; longer ones leave as a copy. With `order="key"` the lane waits, and nothing waits here.
    clock: wall time, for the deadline and the history.

    Raises `ConfigurationError` for figures that make no sense.

    Guarantees that no `Exception` passes it, that a cancellation does, and that a counted `Retry` which the handler
    itself returns or raises is under the same limits. An uncounted one passes untouched and can never become a dead letter.
    It does not promise that the handler runs exactly `attempts` times: after a crash it may run more often, never less.
    """
    return RetryPattern(
        attempts,
        on=on,
        give_up_on=give_up_on,
        deadline=deadline,
        wait=wait,
        rules=rules,
        in_place=in_place,
        clock=clock,
    )


class RetryPattern:
    """What `retry(...)` returns."""

    kind = "retry"

    def __init__(
        self,
        attempts: int | None,
        *,
        on: Errors,
        give_up_on: Errors,
        deadline: float | None,
        wait: WaitBaseT,
        rules: Mapping[type[Exception], Rule] | None,
        in_place: float,
        clock: Clock,
    ) -> None:
        _check_limits(attempts, deadline, in_place)
        if not callable(wait):
            message = f"retry(wait={wait!r}): give a wait strategy of tenacity's, for example wait_fixed(5)"
            raise ConfigurationError(message)
        self.attempts = attempts
        self.deadline = deadline
        self.wait = wait
        self.in_place = in_place
        self._on, self._give_up_on = on, give_up_on
        self._matches = _matcher("on", on)
        self._hopeless = _matcher("give_up_on", give_up_on)
        self.rules = _checked_rules(rules or {})
        self._clock = clock

    def __repr__(self) -> str:
        parts = [f"attempts={self.attempts}"]
        if self._on is not Exception:
            parts.append(f"on={_errors(self._on)}")
        if self._give_up_on != ():
            parts.append(f"give_up_on={_errors(self._give_up_on)}")
        if self.deadline is not None:
            parts.append(f"deadline={self.deadline:g}")
        parts.append(f"wait={_strategy(self.wait)}")
        if self.rules:
            rules = ", ".join(f"{error.__name__}: {_rule(rule)}" for error, rule in self.rules.items())
            parts.append(f"rules={{{rules}}}")
        parts.append(f"in_place={self.in_place:g}")
        return f"retry({', '.join(parts)})"

    def __call__(self, handler: Handler) -> Handler:
        """Return the handler with retries around it."""
        in_place, failed, returned = self.in_place, self._failed, self._returned

        async def retrying(delivery: Delivery) -> Settlement:
            while True:
                try:
                    settlement = await handler(delivery)
                except Exception as error:  # noqa: BLE001 - classifying every failure is what this is for
                    decided = failed(delivery, error)
                except Settle as settled:
                    decided = returned(delivery, settled.settlement)
                else:
                    if type(settlement) is Ack:
                        return settlement
                    decided = returned(delivery, settlement)
                if (
                    type(decided) is not Retry
                    or not decided.counts
                    or decided.after >= in_place
                    or delivery.order != "none"
                ):
                    return decided
                await asyncio.sleep(decided.after)
                delivery.attempt += 1

        return retrying

    def check(self, place: Place) -> None:
        """Refuse a policy that may wait longer than a lane may be held, or than the broker can keep a message back."""
        longest = self.longest()
        if place.order == "key":
            most, whose, advice = place.max_hold, "max_hold", 'raise max_hold, or use order="none"'
        else:
            most, whose, advice = (
                place.capabilities.max_delay,
                "what this broker can delay",
                "or use another broker",
            )
        if longest <= most or (place.order == "none" and longest < self.in_place):
            return
        message = (
            f"handler {place.handler} ({place.channel}/{place.group}): its retry may wait {longest:g} s at once, above "
            f"{whose} ({most:g} s); give a wait strategy with a lower maximum, {advice}"
        )
        raise ConfigurationError(message)

    def longest(self) -> float:
        """Return the longest single wait in seconds that the policy may ask for, as far as it can be known beforehand."""
        waits = self.attempts is None or self.attempts > 1
        longest = longest_wait(self.wait, self.attempts) if waits else 0.0
        fixed = [rule.after for rule in self.rules.values() if isinstance(rule, Retry) and rule.counts]
        longest = max(longest, *map(_clamped, fixed)) if waits and fixed else longest
        return longest if self.deadline is None else min(longest, self.deadline)

    def _failed(self, delivery: Delivery, error: Exception) -> Settlement:
        now = self._clock.time()
        failure = Failure.of(error)
        text = f"{type(error).__name__}: {failure.message}"
        judged = self._judged(error, text)
        if isinstance(judged, Ack) or (isinstance(judged, Retry) and not judged.counts):
            return judged
        entry = {
            "n": delivery.attempt,
            "at": int(now * 1000),
            "type": failure.type,
            "message": failure.message,
        }
        _remember(delivery, {**entry, "trace": failure.trace})
        if judged is None:
            judged = self._again(delivery, now, self._waiting(delivery, now, error), text)
        elif isinstance(judged, Retry):
            judged = self._again(delivery, now, _clamped(judged.after), judged.reason or text)
        _say(delivery, judged, text)
        return judged

    def _returned(self, delivery: Delivery, settlement: Settlement) -> Settlement:
        if not isinstance(settlement, Retry) or not settlement.counts:
            return settlement
        now = self._clock.time()
        reason = settlement.reason or "Retry"
        _remember(
            delivery,
            {"n": delivery.attempt, "at": int(now * 1000), "type": "Retry", "message": settlement.reason},
        )
        return self._again(delivery, now, _clamped(settlement.after), reason)

    def _again(self, delivery: Delivery, now: float, after: float, reason: str) -> Settlement:
        attempt = delivery.attempt
        if self.attempts is not None and attempt >= self.attempts:
            return DeadLetter("exhausted", f"attempt {attempt} of {self.attempts}: {reason}")
        if self.deadline is not None:
            left = delivery.first + self.deadline - now
            if left <= 0:
                return DeadLetter(
                    "exhausted", f"attempt {attempt}, deadline of {self.deadline:g} s is over: {reason}"
                )
            after = min(after, left)
        return Retry(after=after, reason=reason)

    def _judged(self, error: Exception, text: str) -> Settlement | None:
        """Return what an error means by the rules and the classes; None for: try again."""
        ruled = self._ruled(error)
        if ruled is not None:
            return ruled
        if isinstance(error, DecodeError):
            return DeadLetter("decode_error", text)
        try:
            hopeful = not self._hopeless(error) and self._passes(error)
        except Exception:  # noqa: BLE001 - a broken predicate must not cost a message
            _log.exception("a predicate of %r raised; %s is tried again", self, type(error).__name__)
            return None
        return None if hopeful else DeadLetter("unrecoverable", text)

    def _ruled(self, error: Exception) -> Settlement | None:
        if not self.rules:
            return None
        for kind in type(error).__mro__:
            if (rule := self.rules.get(kind)) is not None:
                return _applied(rule, error)
        return None

    def _passes(self, error: Exception) -> bool:
        if isinstance(error, BrokerkitError):
            # A bus that closes under a handler says nothing about the message, so it must not kill it
            return error.retryable or isinstance(error, Closed)
        if not isinstance(error, ExceptionGroup):
            return self._matches(error)
        group = cast("ExceptionGroup[Exception]", error)
        if self._matches(group):
            return all(
                leaf.retryable or isinstance(leaf, Closed)
                for leaf in _leaves(group)
                if isinstance(leaf, BrokerkitError)
            )
        return all(self._passes(leaf) for leaf in group.exceptions)

    def _waiting(self, delivery: Delivery, now: float, error: Exception) -> float:
        state = _state(delivery.attempt, error, since=now - delivery.first)
        try:
            after = float(self.wait(state))
        except Exception:  # noqa: BLE001
            _log.exception("the wait strategy of %r raised; the default one is used", self)
            after = math.nan
        return _clamped(float(_DEFAULT_WAIT(state)) if math.isnan(after) else after)


def longest_wait(strategy: WaitBaseT, attempts: int | None) -> float:
    """
    Return the longest wait in seconds that a strategy gives between `attempts` tries.

    Exact for tenacity's own classes, whose jitter has a known end; any other is asked a number of times. What depends on
    the exception (`wait_exception`) cannot be known and counts as nothing.
    """
    last = (attempts or _MOST_ATTEMPTS) - 1
    probes = {*range(1, min(last, 1000) + 1), *(1 << power for power in range(10, 20)), last}
    return max((_clamped(_longest(strategy, probe)) for probe in probes if 1 <= probe <= last), default=0.0)


def _longest(strategy: WaitBaseT, attempt: int) -> float:
    kind = type(strategy)
    # Exact types: a subclass may say something else
    if isinstance(strategy, wait.wait_random) and kind is wait.wait_random:
        return max(strategy.wait_random_min, strategy.wait_random_max)
    if isinstance(strategy, wait.wait_combine) and kind is wait.wait_combine:
        return sum(_longest(part, attempt) for part in strategy.wait_funcs)
    if isinstance(strategy, wait.wait_chain) and kind is wait.wait_chain:
        return _longest(strategy.strategies[min(attempt, len(strategy.strategies)) - 1], attempt)
    if isinstance(strategy, wait.wait_random_exponential) and kind is wait.wait_random_exponential:
        return max(strategy.min, wait.wait_exponential.__call__(strategy, _state(attempt)))
    if isinstance(strategy, wait.wait_exponential_jitter) and kind is wait.wait_exponential_jitter:
        return _longest_jitter(strategy, attempt)
    draws = 1 if kind in _DETERMINISTIC else 32 if attempt <= _STORY or attempt & (attempt - 1) == 0 else 1
    return max(_asked(strategy, attempt) for _ in range(draws))


def _longest_jitter(strategy: wait.wait_exponential_jitter, attempt: int) -> float:
    try:
        most = strategy.multiplier * strategy.exp_base ** (attempt - 1) + strategy.jitter
    except OverflowError:
        most = strategy.max
    return max(0.0, strategy.min, min(most, strategy.max))


_DETERMINISTIC: Final = (wait.wait_fixed, wait.wait_none, wait.wait_incrementing, wait.wait_exponential)


def _asked(strategy: WaitBaseT, attempt: int) -> float:
    try:
        return float(strategy(_state(attempt)))
    except Exception:  # noqa: BLE001 - what cannot be asked beforehand is cut when it happens
        return 0.0


def _say(delivery: Delivery, judged: Settlement, text: str) -> None:
    """Log one line for a failed handling: where, which try, what, and what follows; never the payload."""
    follows = f"again in {judged.after:.1f} s" if isinstance(judged, Retry) else "to the dead letters"
    where = f"{delivery.channel}/{delivery.group}"
    identity = clean(delivery.event.id)[:80]
    _log.warning(
        "%s: attempt %d of event %s failed (%s); %s", where, delivery.attempt, identity, text[:300], follows
    )


def _state(attempt: int, error: Exception | None = None, since: float = 0.0) -> RetryCallState:
    """Return what a strategy of tenacity's is asked with: attempt, error and the seconds since the first arrival."""
    state = RetryCallState(_RETRYING, None, (), {})
    state.attempt_number = attempt
    state.start_time = time.monotonic() - since
    probe = error or RuntimeError("probe")
    state.set_exception((type(probe), probe, probe.__traceback__))
    return state


def _clamped(seconds: float) -> float:
    """Return a finite wait: never negative, never above the longest; what is no number is the longest."""
    if math.isnan(seconds):
        return LONGEST
    return min(max(float(seconds), 0.0), LONGEST)


def _remember(delivery: Delivery, entry: dict[str, Any]) -> None:
    """
    Put a failed handling into the story; only the last one keeps its trace.

    Bounded, for in `order="key"` the story of a message that fails for days lies in memory.
    """
    story = delivery.story
    for earlier in story:
        earlier.pop("trace", None)
    story.append(entry)
    if len(story) > _STORY:
        merged = story[1].get("cut", 1) + story[2].get("cut", 1)
        story[1:3] = [{"cut": merged}]


def _check_limits(attempts: int | None, deadline: float | None, in_place: float) -> None:
    if attempts is not None and not (_is_number(attempts, int) and 1 <= attempts <= _MOST_ATTEMPTS):
        message = f"retry(attempts={attempts!r}): give a whole number from 1 to {_MOST_ATTEMPTS:,}, or None"
        raise ConfigurationError(message)
    if deadline is not None and not (_is_number(deadline, int | float) and deadline > 0):
        message = f"retry(deadline={deadline!r}): give seconds above 0, or None"
        raise ConfigurationError(message)
    if attempts is None and deadline is None:
        message = "retry(attempts=None): without a limit of attempts give a deadline, or a broken message is tried for ever"
        raise ConfigurationError(message)
    if not (_is_number(in_place, int | float) and in_place >= 0):
        message = f"retry(in_place={in_place!r}): give seconds, 0 for never"
        raise ConfigurationError(message)


def _is_number(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def _matcher(name: str, errors: Errors) -> Callable[[Exception], bool]:
    predicate: Any = errors
    kinds = cast("tuple[Any, ...]", errors if isinstance(errors, tuple) else (errors,))
    if all(isinstance(kind, type) for kind in kinds):
        if wrong := [kind for kind in kinds if not issubclass(kind, Exception)]:
            message = (
                f"retry({name}=...): {wrong[0].__name__} is no subclass of Exception; it must pass untouched"
            )
            raise ConfigurationError(message)
        if name == "give_up_on":
            return lambda error: any(isinstance(leaf, kinds) for leaf in (error, *_leaves(error)))
        return lambda error: isinstance(error, kinds)
    if not callable(predicate):
        message = f"retry({name}={errors!r}): give an exception class, a tuple of them, or a predicate"
        raise ConfigurationError(message)
    return cast("Callable[[Exception], bool]", predicate)


def _leaves(error: BaseException) -> Iterable[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _checked_rules(rules: Mapping[Any, Any]) -> dict[type[BaseException], Rule]:
    for kind, rule in rules.items():
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            message = f"retry(rules=...): {kind!r} is no exception class"
            raise ConfigurationError(message)
        if not (isinstance(rule, Ack | Retry | DeadLetter) or callable(rule)):
            message = f"retry(rules=...): {rule!r} for {kind.__name__} is neither a settlement nor a function to one"
            raise ConfigurationError(message)
    return dict(rules)


def _applied(rule: Rule, error: Exception) -> Settlement | None:
    if isinstance(rule, Ack | Retry | DeadLetter):
        return rule
    try:
        settlement = rule(error)
    except Exception:  # noqa: BLE001
        _log.exception("a rule for %s raised; the error is classified without it", type(error).__name__)
        return None
    if settlement is None or isinstance(settlement, Ack | Retry | DeadLetter):
        return settlement
    _log.error("a rule for %s returned %r, which is no settlement", type(error).__name__, settlement)
    return None


def _errors(errors: Errors) -> str:
    if isinstance(errors, tuple):
        kinds = cast("tuple[Any, ...]", errors)
        return f"({', '.join(kind.__name__ for kind in kinds)})"
    return getattr(errors, "__name__", repr(errors))


def _rule(rule: Rule) -> str:
    return repr(rule) if isinstance(rule, Ack | Retry | DeadLetter) else getattr(rule, "__name__", "function")


def _strategy(strategy: WaitBaseT) -> str:
    if not isinstance(strategy, wait.wait_base):
        return getattr(strategy, "__name__", type(strategy).__name__)
    parts = [
        f"{name}=[{', '.join(map(_strategy, cast('Iterable[WaitBaseT]', value)))}]"
        if isinstance(value, tuple | list)
        else f"{name}={value}"
        for name, value in vars(strategy).items()
    ]
    return f"{type(strategy).__name__}({', '.join(parts)})"
