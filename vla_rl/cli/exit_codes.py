"""Exit codes of the program, for scripts that call it."""

FAILURE = 1  # a bug, or a process of a run that failed for good
USER_ERROR = 2  # one message, no traceback
INTERRUPTED = 130  # Ctrl-C, or another signal that asks to end: see `stop_signals`
