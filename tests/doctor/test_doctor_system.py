"""Memory, disks and folders."""

import os
from collections import namedtuple
from pathlib import Path

import pytest

from vla_rl.doctor import system

GIB = 2**30
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def disk(monkeypatch):
    def set_free(gib):
        usage = Usage(64 * GIB, 0, int(gib * GIB))
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage)

    return set_free


def test_a_megabyte_of_shared_memory_is_put_to_use():
    assert system.check_shared_memory().status == "ok"


def test_shared_memory_that_cannot_be_had_fails_with_the_call_that_is_to_be_allowed(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise ValueError("memfd_create: Operation not permitted")

    monkeypatch.setattr("vla_rl.doctor.system.SharedArrays.create", refuse)
    check = system.check_shared_memory()
    assert check.status == "failed"
    assert "not permitted" in check.found
    assert "memfd_create" in check.fix


@pytest.mark.parametrize(("gib", "status"), [(0.5, "failed"), (9, "warning"), (11, "ok")])
def test_a_full_disk_is_told(disk, gib, status, tmp_path):
    disk(gib)
    assert system.check_disk("runs", system.DiskUse(tmp_path, 10 * GIB, GIB, "go elsewhere")).status == status


def test_a_folder_that_is_not_there_yet_is_judged_by_the_disk_it_will_be_on(tmp_path):
    check = system.check_disk("cache", system.DiskUse(tmp_path / "not" / "yet", 2**60, 0, "name another"))
    assert (check.name, check.status, check.fix) == ("disk: cache", "warning", "free some, or name another")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "hub"),
    [
        ({"XDG_CACHE_HOME": "/cache"}, "/cache/huggingface/hub"),
        ({"HF_HOME": "/models", "XDG_CACHE_HOME": "/cache"}, "/models/hub"),
        ({"HF_HUB_CACHE": "/hub", "HF_HOME": "/models"}, "/hub"),
        ({}, "~/.cache/huggingface/hub"),
    ],
)
def test_the_disks_of_runs_cache_and_model_hub_are_looked_at(variables, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folders = {name: str(use.folder) for name, use in system.disk_uses(variables).items()}
    expected = {"runs": tmp_path, "cache": tmp_path / "cache", "model hub": Path(hub).expanduser()}
    assert folders == {name: str(folder) for name, folder in expected.items()}


@pytest.mark.parametrize(("gib", "status"), [(4, "warning"), (32, "ok")])
def test_little_memory_is_a_warning(monkeypatch, gib, status):
    monkeypatch.setattr("vla_rl.doctor.system.available_memory", lambda: gib * GIB)
    assert system.check_memory().status == status


def test_a_folder_that_cannot_be_written_is_told_with_its_own_fix(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    folders = {"cache": (tmp_path / "file" / "cache", "set VLA_RL_CACHE"), "runs": (tmp_path, "go elsewhere")}
    check = system.check_folders(folders)
    assert check.status == "failed"
    assert check.fix == "set VLA_RL_CACHE"
    assert check.found.startswith("cache: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_told(tmp_path):
    tmp_path.chmod(0o555)
    assert system.check_folders({"runs": (tmp_path, "go elsewhere")}).status == "failed"


def test_looking_at_folders_makes_none(tmp_path):
    folder = tmp_path / "not" / "yet"
    assert system.check_folders({"cache": (folder, "")}).status == "ok"
    assert not folder.parent.exists()
    assert list(tmp_path.iterdir()) == []
