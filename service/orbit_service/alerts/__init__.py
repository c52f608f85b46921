"""Rules, the fold that evaluates them, what is said of it, and what is done about it."""
