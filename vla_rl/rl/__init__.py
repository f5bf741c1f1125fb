"""Pure mathematics: surrogates, targets, losses, diagnostics, theory, without processes, configs or files."""
