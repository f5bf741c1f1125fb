"""Pure mathematics: surrogates, targets, losses, diagnostics, theory. Knows no processes, configs or files."""
