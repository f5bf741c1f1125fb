"""Meta-World version 3 behind the environment protocol. Importing this imports no simulator."""
