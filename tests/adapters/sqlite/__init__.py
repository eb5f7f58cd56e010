"""Tests of `sqlite://`."""
