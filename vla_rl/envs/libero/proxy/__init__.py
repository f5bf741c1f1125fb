"""Stand-ins for LIBERO's assets, made of primitives: simulation without a download."""
