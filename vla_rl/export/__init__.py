"""Export of policies for other programs to load."""
