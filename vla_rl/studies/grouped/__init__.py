"""Comparison of a critic with groups, fresh and on replay: episodes needed for a given success rate."""
