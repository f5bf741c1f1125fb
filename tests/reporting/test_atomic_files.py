import math
import stat

import pytest

from vla_rl.reporting.files import atomic_write_json, atomic_write_text, directory_bytes


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

    monkeypatch.setattr("vla_rl.reporting.files.os.fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


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
