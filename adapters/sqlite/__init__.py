"""The durable broker in one SQLite file, shared by several processes: sqlite://."""
