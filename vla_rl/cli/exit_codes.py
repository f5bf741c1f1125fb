"""How the program ends, for scripts that call it."""

USER_ERROR = 2  # one message, no traceback
INTERRUPTED = 130  # Ctrl-C
