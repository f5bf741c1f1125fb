"""Rules across sections: combinations that each section alone allows.

A rule is a function in the file of its subject, and a member of that file's `RULES`. Its parameters are fields of a
recipe: it is checked if all of these exist and are valid, so that a recipe reports all its faults at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vla_rl.recipe.rules import (
    credit_rules,
    evaluation_rules,
    policy_rules,
    process_rules,
    regime_rules,
    replay_rules,
    schedule_rules,
    supervised_rules,
)
from vla_rl.section import Problem

Rule = Callable[..., Problem | None]
RULES: tuple[Rule, ...] = (
    *policy_rules.RULES,
    *credit_rules.RULES,
    *replay_rules.RULES,
    *evaluation_rules.RULES,
    *process_rules.RULES,
    *schedule_rules.RULES,
    *regime_rules.RULES,
)
SUPERVISED_RULES: tuple[Rule, ...] = (
    *policy_rules.SHARED,
    *schedule_rules.SHARED,
    *evaluation_rules.SHARED,
    *supervised_rules.RULES,
)


def broken_rules(sections: Mapping[str, Any], rules: Sequence[Rule] = RULES) -> list[Problem]:
    """Check every rule whose sections are all present.

    Args:
        sections: the recipe's fields by name, without invalid ones.
        rules: of recipes of this kind.
    """
    found: list[Problem] = []
    for rule in rules:
        names = inspect.signature(rule).parameters
        if all(name in sections for name in names):
            broken = rule(**{name: sections[name] for name in names})
            if broken is not None:
                found.append(broken)
    return found
