"""Resumable study of all stages in LIBERO: demonstrations, a cloned policy, RL from there, before and after."""
