"""Surrogates on old and fresh experience in Meta-World: a grid of tasks, surrogates, regimes and seeds."""
