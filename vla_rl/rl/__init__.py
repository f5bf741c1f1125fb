"""Pure mathematics: surrogates, targets, losses, diagnostics. Knows no processes, configs or files."""
