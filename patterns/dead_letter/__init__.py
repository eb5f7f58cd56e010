"""Keep what could not be handled, with its story, until somebody decides."""

from brokerkit.patterns.dead_letter.letter import Letter, read_letter
from brokerkit.patterns.dead_letter.letters import DeadLetters, LetterOutcome

__all__ = ["DeadLetters", "Letter", "LetterOutcome", "read_letter"]
