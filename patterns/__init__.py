"""What can be wrapped around a handler, one pattern a module; imported as brokerkit.patterns."""
