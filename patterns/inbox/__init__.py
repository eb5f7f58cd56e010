"""Record an event's id in the same database transaction as the handler's work."""
