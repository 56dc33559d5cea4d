"""What the engine asks of a text-to-image model, and what it does with any that answers."""
