"""Studies as commands: the paper's experiments, and others."""
