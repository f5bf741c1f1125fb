"""Evaluation protocol, statistics and the run manifest."""
