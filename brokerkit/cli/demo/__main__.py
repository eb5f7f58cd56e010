"""`python -m brokerkit.cli.demo` is `brokerkit demo`."""

import sys

from brokerkit.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["demo"]
    main()
