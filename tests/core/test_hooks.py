import logging

import pytest

from brokerkit.hooks import Alarm, HookEvent, tell


def test_every_hook_hears_an_event_in_order_whatever_another_raises(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[tuple[str, HookEvent]] = []
    alarm = Alarm("code", "text")

    def broken(event: HookEvent) -> None:
        heard.append(("broken", event))
        raise ValueError

    with caplog.at_level(logging.ERROR, "brokerkit"):
        tell([broken, lambda event: heard.append(("fine", event))], alarm)

    assert heard == [("broken", alarm), ("fine", alarm)]
    assert caplog.messages == ["a hook raised on Alarm"]


def test_a_hook_that_stops_the_process_is_not_silenced() -> None:
    def leave(event: HookEvent) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tell([leave], Alarm("code", "text"))
