"""The numbers in the forms of others: Prometheus, OpenMetrics, OTLP."""
