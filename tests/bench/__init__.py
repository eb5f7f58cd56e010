"""
`make bench`: brokerkit's rates as ratios to raw clients and FastStream, measured in the same interleaved run.

    python -m tests.bench --broker kafka --rounds 5

A *line* is one client doing one thing. Each line runs in a process of its own; within a round the lines take turns, and a
ratio is taken between lines of the same round. A line that does not handle and settle every message fails.
"""
