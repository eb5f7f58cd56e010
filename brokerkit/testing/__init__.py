"""
What a user or an adapter author tests with.

`brokerkit.testing.clock` needs the standard library only; `brokerkit.testing.conformance` needs pytest and
pytest-asyncio and is the one module that imports them, so it is not imported here.
"""

from brokerkit.testing.clock import VirtualClock, VirtualLoop, run_virtual

__all__ = ["VirtualClock", "VirtualLoop", "run_virtual"]
