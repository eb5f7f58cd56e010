"""`python -m brokerkit.cli`: the command line where its script is not on the path."""

from brokerkit.cli import main

if __name__ == "__main__":
    main()
