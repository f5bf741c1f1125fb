"""Checks of a machine before a run can be trusted, one small check each."""
