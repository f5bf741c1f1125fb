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


@pytest.mark.parametrize("file", ["metrics.jsonl", "checkpoints/optimizer_step_90/manifest.json"])
def test_a_new_run_does_not_mix_with_what_is_left_of_another(tmp_path, file):
    """A later --resume would go on from the other run's checkpoint."""
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match=f"holds {file.split('/')[0]} of another run without its recipe.yaml"):
        RunFolder.open(tmp_path, resume=False)
    RunFolder.open(tmp_path, resume=True)


def test_logs_and_empty_log_points_are_no_run(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.jsonl").touch()
    RunFolder.open(tmp_path, resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_whose_name_is_no_text_is_refused_before_anything_is_written(tmp_path, resume):
    """Libraries that read weights and write TensorBoard's events cannot open it."""
    with pytest.raises(ValueError, match=r"^--run-dir: .*found \S+/n\\udcff, from which .* choose another name"):
        RunFolder.open(tmp_path / os.fsdecode(b"n\xff"), resume=resume)
    assert list(tmp_path.iterdir()) == []
