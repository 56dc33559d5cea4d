"""Research: measurements of what the documents claim. Nothing else in the package needs it."""
