import math
import os
import stat

import pytest

from vla_rl.files import (
    atomic_write_json,
    atomic_write_text,
    directory_bytes,
    folder_written_aside,
    read_json_object,
    written_aside,
)


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_aside(tmp_path):
    path = tmp_path / "new" / "a.txt"
    atomic_write_text(path, "old")
    atomic_write_text(path, "Größe")
    assert path.read_text(encoding="utf-8") == "Größe"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_aside(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    atomic_write_text(path, "old")

    def no_space(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vla_rl.files.os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_name_that_is_no_text_is_written_and_read_back_as_the_same_name(tmp_path):
    name = os.fsdecode(b"n\xff")
    atomic_write_json(tmp_path / "a.json", {"command": ["Größe", name]})
    assert read_json_object(tmp_path / "a.json") == {"command": ["Größe", name]}
    atomic_write_text(tmp_path / "a.txt", f"run {name}")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "run n\\udcff"


def test_a_number_that_json_lacks_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        atomic_write_json(tmp_path / "a.json", {"loss": math.nan})
    assert not (tmp_path / "a.json").exists()


def test_a_written_file_is_readable_like_any_other(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    atomic_write_text(tmp_path / "a", "x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_directory_bytes_adds_files_of_all_levels_and_does_not_follow_links(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"x" * 10)
    (tmp_path / "sub" / "b").write_bytes(b"x" * 32)
    big = tmp_path.parent / f"{tmp_path.name}-big"
    big.write_bytes(b"x" * 10_000)
    (tmp_path / "link").symlink_to(big)
    assert 42 <= directory_bytes(tmp_path) < 42 + 1000  # a link counts as itself


def test_a_writer_that_makes_private_files_or_fails_half_way_is_served_alike(tmp_path):
    ordinary, path = tmp_path / "ordinary", tmp_path / "a"
    ordinary.touch()
    with written_aside(path) as aside:
        aside.write_text("whole")
        aside.chmod(0o600)  # as safetensors does
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)

    def half() -> None:
        with written_aside(path) as aside:
            aside.write_text("hal")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_text() == "whole"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "ordinary"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "new" / "out"

    def half() -> None:
        with folder_written_aside(folder) as aside:
            (aside / "a").write_text("a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert not list(folder.parent.iterdir())
    with folder_written_aside(folder) as aside:
        (aside / "below").mkdir()
        (aside / "a").write_text("a")
        (aside / "a").chmod(0o600)
        assert not folder.exists()
    assert [entry.name for entry in folder.parent.iterdir()] == ["out"]
    assert (folder / "a").stat().st_mode & 0o777 == folder.stat().st_mode & 0o666
    with pytest.raises(ValueError, match="nothing is written over it"), folder_written_aside(folder):
        pass


def test_what_a_killed_attempt_left_of_a_folder_is_removed_first(tmp_path):
    (tmp_path / ".tmp-out").mkdir()
    (tmp_path / ".tmp-out" / "old").touch()
    with folder_written_aside(tmp_path / "out") as aside:
        (aside / "new").touch()
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["new"]
