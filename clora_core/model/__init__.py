"""The interface of a text-to-image model, and everything that works with any model behind it."""
