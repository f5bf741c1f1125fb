import json
import math
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from vla_rl.reporting.manifest import (
    PACKAGES,
    changes_in_words,
    earlier_starts,
    hardware,
    source_state,
    versions,
    write_manifest,
)

NOTHING: dict[str, Any] = {"recipe": {}, "seeds": {}, "assets": {}, "deviations": [], "extra": {}}


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_a_manifest_says_what_the_run_was_made_with(tmp_path):
    path = tmp_path / "run" / "manifest.json"
    write_manifest(
        path,
        recipe={"name": "toy", "seed": 3},
        seeds={"run": 3},
        assets={"checkpoint": "tiny"},
        deviations=["horizon 100 instead of 220"],
        extra={"cells": 1},
    )
    manifest = json.loads(path.read_text())
    assert manifest["recipe"] == {"name": "toy", "seed": 3}
    assert manifest["seeds"] == {"run": 3}
    assert manifest["assets"] == {"checkpoint": "tiny"}
    assert manifest["deviations"] == ["horizon 100 instead of 220"]
    assert manifest["extra"] == {"cells": 1}
    assert manifest["command"] == sys.argv
    assert manifest["directory"] == str(Path.cwd())
    assert manifest["hardware"]["memory_bytes"] > 2**20
    assert manifest["hardware"]["cores_usable"] >= 1
    assert manifest["hardware"]["cpu"]
    age = datetime.now(UTC) - datetime.fromisoformat(manifest["started"])
    assert 0 <= age.total_seconds() < 60


def test_a_manifest_keeps_the_starts_that_trained_with_something_else(tmp_path):
    path = tmp_path / "manifest.json"

    def start(after, surrogate, *deviations):
        earlier = earlier_starts(json.loads(path.read_text()), before=after) if after else []
        made_of = {"recipe": {"surrogate": {"name": surrogate}}, "deviations": deviations}
        write_manifest(path, **(NOTHING | made_of), after_optimizer_step=after, earlier=earlier)
        manifest = json.loads(path.read_text())
        starts = [*manifest.get("earlier_starts", []), manifest]
        return [(it["after_optimizer_step"], it["recipe"]["surrogate"]["name"]) for it in starts], manifest[
            "deviations"
        ]

    assert start(0, "gipo", "a") == ([(0, "gipo")], ["a"])
    assert start(3, "gipo", "b") == ([(0, "gipo")], ["a", "b"])  # continues the first
    assert start(6, "ppo", "b") == ([(0, "gipo"), (6, "ppo")], ["a", "b"])
    assert start(6, "sapo", "c") == ([(0, "gipo"), (6, "sapo")], ["a", "b", "c"])  # ppo saved no checkpoint
    manifest = json.loads(path.read_text())
    assert changes_in_words([*manifest["earlier_starts"], manifest]) == [
        "From optimizer step 7 on: surrogate.name sapo instead of gipo."
    ]
    assert start(0, "ppo") == ([(0, "ppo")], [])  # the run began anew


def test_versions_come_from_the_installed_packages_and_missing_ones_are_null(monkeypatch):
    monkeypatch.setattr("vla_rl.reporting.manifest.PACKAGES", ("numpy", "no-such-package-anywhere"))
    import numpy

    found = versions()
    assert found["numpy"] == numpy.__version__
    assert found["no-such-package-anywhere"] is None
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_container_s_share_of_cores_is_recorded(monkeypatch):
    monkeypatch.setattr("vla_rl.reporting.manifest.usable_cores", lambda: 3)
    assert hardware()["cores_usable"] == 3


def test_the_simulators_are_among_the_packages():
    assert {"mujoco", "robosuite", "hf-libero", "metaworld", "gymnasium"} <= set(PACKAGES)


def test_a_value_that_json_lacks_is_refused_and_no_file_is_left(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_manifest(tmp_path / "manifest.json", **(NOTHING | {"extra": {"score": math.nan}}))
    assert list(tmp_path.iterdir()) == []


def test_the_source_is_a_commit_that_is_dirty_when_a_tracked_file_changed(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "untracked").touch()
    assert source_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "a.py").write_text("2")
    assert source_state(tmp_path) == {"commit": commit, "dirty": True}


def test_a_package_inside_somebody_elses_checkout_has_no_commit(tmp_path):
    git(tmp_path, "init", "-q")
    inside = tmp_path / "site-packages"
    inside.mkdir()
    assert source_state(inside) == {"commit": None, "dirty": None}


def test_writing_a_manifest_imports_nothing_heavy(tmp_path):
    code = (
        "import sys, json, pathlib; from vla_rl.reporting.manifest import write_manifest;"
        f"p = pathlib.Path({str(tmp_path / 'm.json')!r});"
        "write_manifest(p, recipe={}, seeds={}, assets={}, deviations=[], extra={});"
        "assert json.loads(p.read_text())['hardware']['accelerators'] is None;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'mujoco', 'transformers', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
