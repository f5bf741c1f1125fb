"""Figures 2 and 4 to 9 of the paper (arXiv 2603.03955), from finished Meta-World studies and the GridWorld."""
