"""Delivery of what is said about alerts: by Apprise, from an outbox that outlives the service."""
