"""Handle an event once: remember the ids of what finished."""
