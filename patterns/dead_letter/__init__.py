"""Keep what could not be handled, with its story, until somebody decides."""
