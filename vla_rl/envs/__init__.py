"""Environments behind one protocol (`vla_rl.types.Environment`)."""
