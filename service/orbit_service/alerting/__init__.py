"""The wiring of alerts: when rules are looked at, at what, and where it goes from there."""
