"""Keep what could not be handled, with its story, until somebody decides."""

from brokerkit.patterns.dead_letter.letter import Letter, read_letter
from brokerkit.patterns.dead_letter.letters import DeadLetters, Outcome

__all__ = ["DeadLetters", "Letter", "Outcome", "read_letter"]
