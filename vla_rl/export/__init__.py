"""Policies for other programs to load."""
