"""What the nodes do, in terms of the engine and the host."""
