"""Resumable study of the whole road in LIBERO: demonstrations, a cloned policy, RL from there, before and after."""
