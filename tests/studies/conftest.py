"""A program that stands in for `vla-rl` in the jobs of a study."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vla_rl.studies import jobs as study_jobs
from vla_rl.studies import price


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have memory for the jobs that are asked for, whatever this machine has."""
    monkeypatch.setattr(price, "available_memory", lambda: 2**40)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """A function that makes jobs run a program in Python in place of `vla-rl`, with the same arguments."""

    def install(program: str) -> None:
        script, file = tmp_path / "stand_in.sh", tmp_path / "stand_in.py"
        file.write_text(program, encoding="utf-8")
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {file} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
        monkeypatch.setattr(study_jobs.sys, "executable", str(script))

    return install
