"""Evaluation: the protocol, its episodes, their statistics, and two evaluations compared."""
