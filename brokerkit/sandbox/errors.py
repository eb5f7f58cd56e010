"""
What can go wrong around a sandbox, apart from the brokers themselves.
"""

from brokerkit.errors import BrokerkitError

__all__ = ["NotReady", "SandboxError", "SetupFailed"]


class SandboxError(BrokerkitError):
    """A server could not be started, stopped or told about; the text names it and quotes the end of its log."""

    code = "sandbox"


class NotReady(SandboxError):
    """A server runs, and did not answer in its own protocol in time."""

    code = "not_ready"
    retryable = True


class SetupFailed(SandboxError):
    """
    What a server needs is missing and could not be installed here.

    The text reads `setup failed: WHAT; DO`: what is missing, then what to run. It says nothing about the code under test.
    """

    code = "setup_failed"

    def __init__(self, what: str, do: str) -> None:
        super().__init__(f"setup failed: {what}; {do}")
        self.what = what
        self.do = do
