"""How to learn: a step and its loss, regularizers, recipes."""
