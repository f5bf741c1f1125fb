"""Fixtures of supervised runs; what tests import by name is in `sft_demos`."""

from sft_demos import demos, run  # noqa: F401
