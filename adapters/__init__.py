"""One folder for each broker; imported as brokerkit.adapters, found by the scheme of a URL."""
