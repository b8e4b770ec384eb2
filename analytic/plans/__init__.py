"""Many deployments of one model side by side."""
