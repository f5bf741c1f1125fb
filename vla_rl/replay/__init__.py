"""Replay ring in shared memory, and its sampling."""
