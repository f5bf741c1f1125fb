"""Demonstrations made in the simulator: collected from the scripted expert, or checked by playing them again."""
