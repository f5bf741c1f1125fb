"""`python -m vla_rl` is `vla-rl`."""

from vla_rl.cli.main import run

run()
