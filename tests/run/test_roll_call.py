"""Ranks that differ end before they start, all with the same error, which names the rank that differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from boards import together

from vla_rl.errors import UserError, preflight
from vla_rl.learner.checkpoint import CheckpointInfo, find_latest
from vla_rl.learner.checkpoint_folder import write_manifest
from vla_rl.learner.notice_board import NoticeBoard
from vla_rl.learner.rank_failures import CommonError
from vla_rl.run import roll_call
from vla_rl.run.folder import RunFolder
from vla_rl.run.roll_call import Facts, common_start, compare_facts, compare_weights, find_place, kept_folder

RECIPE: dict[str, Any] = {"seed": 0, "surrogate": {"name": "gipo", "sigma": 1.0}}


def add_checkpoint(run_dir: Path, optimizer_steps: int, weights: bytes = b"weights") -> None:
    folder = run_dir / "checkpoints" / f"optimizer_step_{optimizer_steps}"
    folder.mkdir(parents=True)
    (folder / "policy.safetensors").write_bytes(weights)
    write_manifest(folder)


def facts(run_dir: Path, recipe: dict[str, Any] = RECIPE, *, resume: bool = True) -> Facts:
    return Facts.of(recipe, run_dir, resume=resume, newest=find_latest(run_dir).newest)


def compares(own: Facts) -> Callable[[NoticeBoard], Any]:
    def compare(board: NoticeBoard) -> CheckpointInfo | None:
        board.meet()
        newest = find_latest(Path(own.run_dir)).newest
        return common_start(board, compare_facts(board, own), Path(own.run_dir), newest)

    return compare


def the_error_of_all(results: list[Any]) -> str:
    """Every rank ends with the same user error."""
    assert [type(result) for result in results] == [CommonError] * len(results), results
    (text,) = {str(result) for result in results}
    return text


def test_ranks_that_have_the_same_go_on(tmp_path: Path) -> None:
    assert together(compares(facts(tmp_path)), compares(facts(tmp_path))) == [None, None]


def test_another_value_of_the_recipe_is_named_with_the_rank_that_has_it(tmp_path: Path) -> None:
    other = RECIPE | {"surrogate": {"name": "gipo", "sigma": 2.0}}
    results = together(*(compares(facts(tmp_path, recipe)) for recipe in (RECIPE, RECIPE, other)))
    text = the_error_of_all(results)
    assert text.startswith("recipes differ between rank 0 (host0) and rank 2 (host2):")
    assert "surrogate.sigma: 1.0 on rank 0, 2.0 on rank 2" in text
    assert "seed" not in text


def test_another_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = facts(tmp_path)
    monkeypatch.setattr(roll_call, "_versions", lambda: first.versions | {"torch": "1.0"})
    text = the_error_of_all(together(compares(first), compares(facts(tmp_path))))
    assert text.startswith("versions differ")
    assert f"torch: {torch.__version__} on rank 0, 1.0 on rank 1" in text


def test_the_versions_tell_checkouts_of_different_commits_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them call themselves 0.1.0."""
    monkeypatch.setattr(roll_call, "source_state", lambda _folder: {"commit": "abc"})
    assert facts(tmp_path).versions["commit of the checkout"] == "abc"


def test_resuming_on_some_ranks_only_is_refused(tmp_path: Path) -> None:
    text = the_error_of_all(together(compares(facts(tmp_path)), compares(facts(tmp_path, resume=False))))
    assert text.startswith("--resume: rank 0 (host0) was started with it and rank 1 (host1) without")


def test_all_resume_from_the_newest_checkpoint_that_all_have(tmp_path: Path) -> None:
    """Killed while one machine had published its part of a checkpoint and the other had not."""
    for rank, steps in enumerate(((10, 20), (10,))):
        for step in steps:
            add_checkpoint(tmp_path / f"run{rank}", step)
    starts = together(*(compares(facts(tmp_path / f"run{rank}")) for rank in (0, 1)))
    assert [(start.path.parent.parent.name, start.optimizer_steps) for start in starts] == [("run0", 10), ("run1", 10)]


def test_a_checkpoint_that_was_moved_aside_by_a_save_that_did_not_end_is_one(tmp_path: Path) -> None:
    add_checkpoint(tmp_path, 10)
    (tmp_path / "checkpoints" / "optimizer_step_10").rename(tmp_path / "checkpoints" / ".tmp-old-optimizer_step_10")
    starts = together(compares(facts(tmp_path)), compares(facts(tmp_path)))
    assert [start.optimizer_steps for start in starts] == [10, 10]
    assert not any(start.is_in_place for start in starts)


def test_the_checkpoint_to_start_from_may_lie_elsewhere_on_another_machine(tmp_path: Path) -> None:
    """Its weights are compared, so its path need not be."""
    paths = [RECIPE | {"policy": {"checkpoint": f"/disk{rank}/checkpoint"}} for rank in (0, 1)]
    assert together(*(compares(facts(tmp_path, recipe)) for recipe in paths)) == [None, None]


def test_a_machine_that_lacks_the_checkpoint_is_named_with_what_to_copy(tmp_path: Path) -> None:
    add_checkpoint(tmp_path / "run0", 20)
    (tmp_path / "run1").mkdir()
    text = the_error_of_all(together(*(compares(facts(tmp_path / f"run{rank}")) for rank in (0, 1))))
    assert f"rank 0 (host0) has optimizer_step_20 in {tmp_path / 'run0'}" in text
    assert f"rank 1 (host1) does not have it in {tmp_path / 'run1'}" in text
    assert "Copy recipe.yaml and checkpoints/optimizer_step_20" in text


def test_the_checkpoint_before_the_first_update_is_one(tmp_path: Path) -> None:
    (tmp_path / "run0").mkdir()
    add_checkpoint(tmp_path / "run1", 0)
    text = the_error_of_all(together(*(compares(facts(tmp_path / f"run{rank}")) for rank in (0, 1))))
    assert f"rank 1 (host1) has optimizer_step_0 in {tmp_path / 'run1'}" in text
    assert f"rank 0 (host0) does not have it in {tmp_path / 'run0'}" in text


def test_checkpoints_of_different_runs_are_not_mixed(tmp_path: Path) -> None:
    add_checkpoint(tmp_path / "run0", 20)
    add_checkpoint(tmp_path / "run1", 20, b"other weights")
    text = the_error_of_all(together(*(compares(facts(tmp_path / f"run{rank}")) for rank in (0, 1))))
    assert "optimizer_step_20 has other weights" in text
    assert "rank 1 (host1)" in text


def finds(run_dir: Path) -> Callable[[NoticeBoard], Any]:
    return lambda board: find_place(board, run_dir)


def test_ranks_find_out_who_shares_their_folder_and_leave_nothing_in_it(tmp_path: Path) -> None:
    """Two machines, each with a folder of its own and two ranks."""
    folders = [tmp_path / "a", tmp_path / "a", tmp_path / "b", tmp_path / "b"]
    places = together(*map(finds, folders))
    assert [place.ranks for place in places] == [(0, 1), (0, 1), (2, 3), (2, 3)]
    assert [place.is_keeper for place in places] == [True, False, True, False]
    assert not any(place.is_shared for place in places)
    assert [*(tmp_path / "a").iterdir(), *(tmp_path / "b").iterdir()] == []


def test_a_folder_that_all_share_has_one_keeper(tmp_path: Path) -> None:
    places = together(*[finds(tmp_path / "a")] * 3)
    assert [place.is_keeper for place in places] == [True, False, False]
    assert all(place.is_shared for place in places)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll_call, "FOLDER_S", 0.3)


def keeps(run_dir: Path, *, shared: bool = False) -> Callable[[NoticeBoard], Any]:
    def keep(board: NoticeBoard) -> bool:
        board.meet()
        with preflight(), kept_folder(RunFolder(run_dir), board, resume=False, together=shared) as is_keeper:
            return is_keeper

    return keep


def test_a_folder_of_another_machine_that_holds_a_run_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "recipe.yaml").write_text("name: earlier\n")
    first, second = together(keeps(tmp_path / "a"), keeps(tmp_path / "b"))
    assert isinstance(first, UserError)
    assert str(first).startswith(f"rank 1 (host1): --run-dir: {tmp_path / 'b'} already holds a run")
    assert isinstance(second, UserError)


def test_a_run_that_needs_a_common_folder_refuses_separate_ones(tmp_path: Path) -> None:
    results = together(keeps(tmp_path / "a", shared=True), keeps(tmp_path / "b", shared=True))
    text = the_error_of_all(results)
    assert "rank 0 (host0) and rank 1 (host1) see different ones" in text


def weighs(*, changed: bool, dtype: torch.dtype = torch.float32) -> Callable[[NoticeBoard], None]:
    def weigh(board: NoticeBoard) -> None:
        policy = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).to(dtype)
        with torch.no_grad():
            for index, parameter in enumerate(policy.parameters()):
                parameter.fill_(index)
            if changed:
                policy[1].weight[0, 1] += 2.0**-6
        policy[1].requires_grad_(False)
        board.meet()
        compare_weights(board, policy)

    return weigh


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_other_weight_is_found_frozen_ones_included(dtype: torch.dtype) -> None:
    assert together(*[weighs(changed=False, dtype=dtype)] * 2) == [None, None]
    results = together(weighs(changed=False, dtype=dtype), weighs(changed=True, dtype=dtype))
    text = the_error_of_all(results)
    assert "rank 1 (host1) begins with other weights than rank 0 (host0)" in text
    assert "1 of 4 parameters differ, the first: 1.weight" in text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("numel", [0, 1, 3, 8, 21])
def test_every_element_counts_in_a_checksum_wherever_the_tensor_lies(numel: int, dtype: torch.dtype) -> None:
    values = torch.arange(1, numel + 2).to(dtype)
    whole, shifted = roll_call._bits(values[:numel].clone()), roll_call._bits(torch.cat([values[:1], values])[1:-1])
    assert whole == shifted
    for index in range(numel):
        changed = values[:numel].clone()
        changed[index] += 1
        assert roll_call._bits(changed) != whole
