"""
The command line. `brokerkit --help` imports click and nothing else; each command imports what it needs when it runs.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; ends the process with one of the codes of `brokerkit.cli.exits`."""
    try:
        from brokerkit.cli.root import cli
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.stderr.write("brokerkit: the command line needs an extra: pip install 'brokerkit-bus[cli]'\n")
        sys.exit(1)
    cli.main(prog_name="brokerkit")
