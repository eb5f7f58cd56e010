"""Faults that every broker has to stand: real servers, stopped, killed and frozen while messages are on their way."""
