"""Serving engines: what each allocates, and when."""
