"""Supervised stage: a policy learns from demonstrations, before reinforcement learning or instead of it."""
