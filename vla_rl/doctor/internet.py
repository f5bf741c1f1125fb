"""Check that model checkpoints and assets could be downloaded. No part of the program requires it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from vla_rl.doctor.record import Check
from vla_rl.envs.libero.child import Outcome, run_python

HUB = "https://huggingface.co"
_SECONDS = 8.0  # also covers a name server that does not answer, for which sockets have no time-out
_ASK = """
import sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="HEAD"), timeout=4)
except urllib.error.HTTPError:
    pass
except urllib.error.URLError as error:
    sys.exit(str(getattr(error.reason, "strerror", None) or error.reason))
"""


def check_hub(*, run: Callable[..., Outcome] = run_python, variables: Mapping[str, str] = os.environ) -> Check:
    """Reach the hub, or the mirror that HF_ENDPOINT names, within seconds. Informative: it never fails."""
    name = "model hub"
    if variables.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on"):
        return Check(name, "skipped", "HF_HUB_OFFLINE is set: checkpoints and assets are read from this machine")
    hub = variables.get("HF_ENDPOINT", "") or HUB
    outcome = run(_ASK, hub, seconds=_SECONDS)
    if outcome.ok:
        return Check(name, "ok", f"{hub} answers")
    return Check(name, "skipped", f"{hub} cannot be reached ({outcome.reason}); local files work without it")
