"""The run that docs/algorithm.md shows is executed as it stands there, and learns."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[2] / "docs" / "algorithm.md"


def test_the_documented_run_learns_to_reach_the_goal_from_old_experience() -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(program, str(DOCUMENT), "exec"), names)
    assert sum(names["successes"][:100]) < 30
    assert sum(names["successes"][-100:]) > 80
    assert names["metrics"]["policy_lag/mean"] > 10
