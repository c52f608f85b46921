"""The node's own memory on disk: a journal of what was said, over a checkpoint."""
