"""Reading of a checkpoint's JSON files, whose values nobody has checked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vla_rl.policies.openvla_oft.headers import refuse_pointer


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a file; ValueError names the file if it holds anything else."""
    refuse_pointer(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def is_positive(value: object, kind: type) -> bool:
    """Return whether a JSON value is a positive, finite number of that type; integers count as floats too."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return 0 < value < math.inf and (kind is float or isinstance(value, kind))
