"""Env workers, the inference worker, and the supervisor of a cell's processes."""
