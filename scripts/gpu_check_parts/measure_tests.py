"""The tests that need a GPU: `pytest -m gpu` over the files that hold any."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from gpu_check_parts.record import Record, Setting

MARK = "mark.gpu"


def measure(record: Record, setting: Setting) -> None:
    """Run them and count."""
    files = files_with_gpu_tests(setting.root / "tests")
    record.put("files", [str(file.relative_to(setting.root)) for file in files])
    report = setting.scratch / "report.xml"
    options = ["-m", "gpu", "-q", "-rfEs", "--tb=short", "-p", "no:cacheprovider", f"--rootdir={setting.root}"]
    options += ["-c", str(setting.root / "pyproject.toml"), "--continue-on-collection-errors"]
    code = pytest.main([*options, f"--junitxml={report}", *map(str, files)])
    record.put("exit_code", int(code))
    counts = summary(report)
    for name, value in counts.items():
        record.put(name, value)
    record.check("every GPU test passes", not counts["broken"], "; ".join(counts["broken"]))
    record.check(
        "some GPU test was run", counts["passed"] > 0 or bool(counts["broken"]), f"{counts['skipped']} skipped"
    )


def files_with_gpu_tests(folder: Path) -> list[Path]:
    """The others are not imported: what they import may be absent."""
    return [file for file in sorted(folder.rglob("test_*.py")) if MARK in file.read_text(encoding="utf-8")]


def summary(report: Path) -> dict[str, Any]:
    """Counts of a JUnit file, and what failed by name with the first line of the reason."""
    if not report.exists():
        return {"passed": 0, "skipped": 0, "broken": ["pytest wrote no report"]}
    passed = skipped = 0
    broken = []
    for case in ElementTree.parse(report).iter("testcase"):
        bad = next((child for child in case if child.tag in ("failure", "error")), None)
        if bad is not None:
            reason = (bad.get("message") or "").splitlines() or [""]
            broken.append(f"{case.get('name')}: {reason[0][:200]}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return {"passed": passed, "skipped": skipped, "broken": broken}
