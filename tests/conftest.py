"""What every test finds."""

import os
import signal
from contextlib import suppress

from vla_rl.envs.libero.cache import cache_root

# Beside no cache of a single test: compiling anew takes half a minute.
os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_root() / "numba-tests"))

# Tests send these to themselves and to programs they start, which inherit how they are taken. A shell starts its jobs
# in the background with Ctrl-C ignored, `nohup` and some CI services with hangups ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

with suppress(ModuleNotFoundError):  # a bare machine with a GPU may lack it; the GPU tests do without
    from hypothesis import settings

    # An example's time says how busy the machine is, not whether the property holds.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")
