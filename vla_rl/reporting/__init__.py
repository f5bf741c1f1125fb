"""Metric sinks, live view, plots."""
