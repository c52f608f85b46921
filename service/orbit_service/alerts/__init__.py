"""Rules, the fold that evaluates them, what is said of it, and what is done about it."""

from pathlib import Path

EXAMPLE = Path(__file__).with_name("example.toml")  # rules that hold without a change
