"""Programs as a user would write them; each one runs, and a test holds what it prints."""
