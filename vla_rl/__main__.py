"""Entry point: `python -m vla_rl` is `vla-rl`."""

from vla_rl.cli.start import run

run()
