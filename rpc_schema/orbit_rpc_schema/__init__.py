"""The contract between workers, the service and whoever reads it, and nothing else."""
