"""A multi-layer perceptron over states."""
