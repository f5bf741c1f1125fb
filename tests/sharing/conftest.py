"""A run and its export, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_run import make_run

from vla_rl.export.policy_export import export


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run` and `export`; tests copy it before they change anything."""
    folder = tmp_path_factory.mktemp("shared")
    export(make_run(folder / "run"), out=folder / "export", verify=0)
    return folder


@pytest.fixture
def shared(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is also the current folder."""
    shutil.copytree(made, tmp_path / "made")
    monkeypatch.chdir(tmp_path / "made")
    return tmp_path / "made"
