"""Research: what the documents claim, measured. Nothing else of the package needs it."""
