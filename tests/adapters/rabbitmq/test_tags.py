"""Acks: exactly what is finished is acked, each once, and never with a tag that the broker does not wait for."""

from hypothesis import given
from hypothesis import strategies as st

from brokerkit.adapters.rabbitmq.tags import Tags


class Broker:
    """What RabbitMQ does with acks: it goes through the unacked in order."""

    def __init__(self, count: int) -> None:
        self.unacked = list(range(1, count + 1))

    def ack(self, tag: int, *, multiple: bool) -> None:
        assert tag in self.unacked, "unknown delivery tag: the channel would be closed"
        self.unacked = [each for each in self.unacked if (each > tag if multiple else each != tag)]


@given(st.permutations(range(1, 25)), st.lists(st.integers(1, 5), min_size=24, max_size=24))
def test_finished_in_any_order_and_in_any_batches(order: list[int], sizes: list[int]) -> None:
    broker, tags = Broker(24), Tags()
    finished: set[int] = set()
    while order:
        size = sizes.pop()
        batch, order = order[:size], order[size:]
        finished.update(batch)
        for tag, multiple in tags.finish(batch):
            broker.ack(tag, multiple=multiple)
        assert set(broker.unacked) == set(range(1, 25)) - finished


def test_a_finished_prefix_is_one_ack() -> None:
    tags = Tags()
    assert tags.finish([1, 2, 3]) == [(3, True)]
    assert tags.finish([6, 5]) == [(5, False), (6, False)]
    assert tags.finish([4]) == [(4, True)]
    assert tags.finish([7, 9]) == [(7, True), (9, False)]
