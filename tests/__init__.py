"""The tests; each folder mirrors a part of the package."""
