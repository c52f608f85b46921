"""What is counted and what it means: no clock, socket, log or database."""
