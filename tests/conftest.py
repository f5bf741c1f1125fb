"""What every test finds."""

import os

from vla_rl.envs.libero.cache import cache_root

# Beside no cache of a single test: compiling anew takes half a minute.
os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_root() / "numba-tests"))
