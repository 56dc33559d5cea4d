"""How to learn: the training step and its loss, regularizers, recipes."""
