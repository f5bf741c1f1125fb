"""LIBERO behind the environment protocol."""
