"""Starts of engines that a log tells of, beside the estimate of the same start."""
