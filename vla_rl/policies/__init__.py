"""Policies behind one protocol (`vla_rl.types.Policy`), action tokens, image transforms and value heads."""
