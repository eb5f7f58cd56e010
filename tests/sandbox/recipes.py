"""A server in a few lines of Python, for what the sandbox does with any server."""

import signal
import sys
from pathlib import Path
from typing import ClassVar, Final

from brokerkit.sandbox.ports import LOOPBACK
from brokerkit.sandbox.probe import http_ok
from brokerkit.sandbox.recipe import Installation, Launch, Site
from brokerkit.sandbox.tools import Tools

PROGRAM: Final = """
import http.server, pathlib, sys
port, mode = int(sys.argv[1]), sys.argv[2]
if mode == "ends":
    print("out of cheese")
    sys.exit(1)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if mode == "sick" else 200)
        self.end_headers()
pathlib.Path("data", "starts").open("a").write("x")
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
COMPANION: Final = "import time; time.sleep(600)"


class Small:
    """An HTTP server with a companion; its setting `mode` makes it sick, or end at once."""

    name: ClassVar[str] = "small"
    ports: ClassVar[tuple[str, ...]] = ("client", "other")
    patience: ClassVar[float] = 30.0
    stop_by: ClassVar[signal.Signals] = signal.SIGTERM
    secure: ClassVar[bool] = False

    def install(self, tools: Tools) -> Installation:
        return Installation("1.0", {"python": Path(sys.executable)})

    def data(self, folder: Path) -> Path:
        return folder / "data"

    def prepare(self, site: Site, installed: Installation) -> Launch:
        python = installed.programs["python"]
        mode = site.settings.get("mode", "well")
        return Launch(
            [python, "-I", "-c", PROGRAM, str(site.ports["client"]), mode],
            before=[[python, "-I", "-c", COMPANION]],
        )

    def probe(self, site: Site, installed: Installation) -> str | None:
        return http_ok(site.ports["client"], "/")

    def url(self, site: Site) -> str:
        return f"http://{LOOPBACK}:{site.ports['client']}"
