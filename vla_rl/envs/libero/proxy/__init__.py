"""Stand-ins for LIBERO's assets, made of primitives: the simulator without a download."""
