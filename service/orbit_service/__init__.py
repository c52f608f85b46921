"""The sidecar: it holds the collector and answers for it."""
