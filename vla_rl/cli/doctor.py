"""`vla-rl doctor`: checks that this machine can run what the recipes ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vla_rl.doctor.record import Check


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Check versions, graphics, LIBERO, memory and GPUs, each with its fix. Exits with 1 if a check failed."""
    from vla_rl.doctor.examine import examine

    checks: list[Check] = []
    for check in examine():
        checks.append(check)
        if not as_json:
            print(format_check(check), flush=True)
    print(_as_json(checks) if as_json else summary(checks))
    if any(check.status == "failed" for check in checks):
        raise typer.Exit(1)


def format_check(check: Check) -> str:
    """Format a check as one line, and two more if something needs to be done."""
    lines = [f"{check.status:8} {check.name:22} {check.found}"]
    if check.fix:
        lines += [f"{'':8} {'':22} allowed: {check.allowed}"] if check.allowed else []
        lines += [f"{'':8} {'':22} fix: {check.fix}"]
    return "\n".join(lines)


def summary(checks: list[Check]) -> str:
    """Count the checks of each status."""
    counts = {status: sum(check.status == status for check in checks) for status in ("failed", "warning", "skipped")}
    return f"{len(checks)} checks: " + ", ".join(f"{number} {status}" for status, number in counts.items())


def _as_json(checks: list[Check]) -> str:
    import dataclasses
    import json

    passed = not any(check.status == "failed" for check in checks)
    return json.dumps({"passed": passed, "checks": [dataclasses.asdict(check) for check in checks]}, indent=2)
