"""What a rank finds, and says, before its run begins."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from vla_rl.recipe import find_recipe, load_recipe, load_supervised_recipe
from vla_rl.run.beginning import Beginning, find_beginning, open_folder, plain_lines

RANKS = "learner={strategy: ddp, num_ranks: 3}"


def begin(recipe, run_dir: Path) -> tuple[Beginning, str]:
    stream = io.StringIO()
    folder = open_folder(run_dir, resume=False, verb="train")
    found = find_beginning(recipe, folder, resume=False, board=None, console=Console(file=stream, width=40))
    found.tell()
    return found, stream.getvalue()


def test_a_line_is_printed_as_it_is_however_narrow_the_terminal() -> None:
    stream = io.StringIO()
    line = f"evaluating {Path('/') / ('x' * 60) / '[red]' / 'optimizer_step_1'} of optimizer step 1"
    plain_lines(Console(file=stream, width=40))(line)
    assert stream.getvalue() == f"{line}\n"


@pytest.mark.parametrize("stage", ["train", "sft"])
def test_the_first_of_the_ranks_that_a_launcher_started_says_that_their_number_counts(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = (
        load_recipe(find_recipe("toy"), [RANKS, "runtime.mode=async"])
        if stage == "train"
        else load_supervised_recipe(find_recipe("libero_sft_tiny"), [RANKS, "demos.path=x"])
    )
    said = "the launcher started 2 ranks, and so many train; learner.num_ranks=3 counts only without a launcher\n"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, expected in (("0", said), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        found, printed = begin(recipe, tmp_path)
        assert printed == expected
        assert (found.rank, found.num_ranks) == (int(rank), 2)


def test_only_the_first_rank_minds_a_run_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 may have written it a moment ago."""
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(ValueError, match="already holds a run"):
        open_folder(tmp_path, resume=False, verb="train")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert open_folder(tmp_path, resume=False, verb="train").path == tmp_path
