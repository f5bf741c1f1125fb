import os

import pytest

from vla_rl.run.folder import RunFolder


def test_only_one_run_at_a_time_may_write_to_a_folder(tmp_path):
    path = tmp_path / "runs" / "name"
    with (
        RunFolder(path).claimed(),
        pytest.raises(ValueError, match="another process is writing"),
        RunFolder(path).claimed(),
    ):
        pass
    with RunFolder(path).claimed():  # the first has let go of it
        assert list(path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file/run cannot be made"), RunFolder(tmp_path / "file" / "run").claimed():
        pass


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ValueError, match="cannot be written to"), RunFolder(tmp_path).claimed():
        pass
