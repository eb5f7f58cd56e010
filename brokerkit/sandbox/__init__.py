"""
Real brokers on this machine, without containers: installed where they are missing, started, watched, stopped.

    box = Sandbox()                       # .brokerkit/sandbox below the current folder
    kafka = box.up("kafka")               # returns when it answers in its own protocol
    kafka.url, kafka.kill(), kafka.start()
    box.down()

They listen on loopback, on ports that were free, and have well-known passwords: for development and tests only.
"""

from brokerkit.sandbox.errors import NotReady, SandboxError, SetupFailed
from brokerkit.sandbox.recipe import Security
from brokerkit.sandbox.sandbox import DEFAULT_FOLDER, SERVERS, Sandbox
from brokerkit.sandbox.server import Server, State, Status

__all__ = [
    "DEFAULT_FOLDER",
    "SERVERS",
    "NotReady",
    "Sandbox",
    "SandboxError",
    "Security",
    "Server",
    "SetupFailed",
    "State",
    "Status",
]
