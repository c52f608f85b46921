"""Closed windows of the past, in SQLite or PostgreSQL: what is added to it, and read again."""
