"""The paper's GridWorld: bias and variance of one gradient step, by exact enumeration."""
