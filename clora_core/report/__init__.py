"""Reports on a museum: what every exhibit looks like, how later learning changed it, and how plain prompts changed."""
