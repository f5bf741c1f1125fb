"""Ranks begin and end together: what one says all hear, and a failure of one ends all with its cause."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from boards import together

from vla_rl.errors import CellFailureError, RunFailureError, UserError
from vla_rl.learner import notice_board
from vla_rl.learner.notice_board import NoticeBoard, own_name
from vla_rl.learner.rank_failures import AnotherRankError, AnotherRankRefusedError, CommonError
from vla_rl.run.ranks import ranks_together

ROOT = Path(__file__).parents[2]


def meets(board: NoticeBoard) -> list[str]:
    board.meet()
    return [board.name_of(rank) for rank in range(board.num_ranks)]


def waits(board: NoticeBoard) -> None:
    """Learn until another rank fails, as a rank does that waits for experience."""
    board.meet()
    while True:
        board.check()
        time.sleep(0.01)


def fails_with(error: BaseException) -> Callable[[NoticeBoard], None]:
    def fail(board: NoticeBoard) -> None:
        board.meet()
        time.sleep(0.2)  # the others are past their meeting too
        raise error

    return fail


def test_every_rank_hears_what_every_rank_says_in_rank_order() -> None:
    def say(board: NoticeBoard) -> list[str]:
        return board.exchange("topic", f"of {board.rank}")

    assert together(say, say, say) == [["of 0", "of 1", "of 2"]] * 3


def test_ranks_learn_each_other_s_names() -> None:
    assert together(meets, meets) == [["rank 0 (host0)", "rank 1 (host1)"]] * 2


def test_a_rank_that_fails_ends_all_and_each_says_which_and_why() -> None:
    first, second, third = together(waits, fails_with(CellFailureError("the env worker died")), waits)
    assert isinstance(second, CellFailureError)
    for other in (first, third):
        assert isinstance(other, AnotherRankError)
        assert str(other) == "rank 1 (host1): the env worker died"


def test_a_user_error_of_one_rank_is_one_of_all_even_before_they_have_met() -> None:
    def refuses(board: NoticeBoard) -> None:
        raise UserError("recipe.yaml: 1 problem")

    first, second = together(meets, refuses)
    assert isinstance(first, AnotherRankRefusedError)
    assert str(first) == "rank 1 (host1): recipe.yaml: 1 problem"
    assert str(second) == "recipe.yaml: 1 problem"


def test_a_bug_in_one_rank_is_told_with_its_type() -> None:
    first, second = together(waits, fails_with(KeyError("frames")))
    assert isinstance(second, KeyError)
    assert str(first).startswith("rank 1 (host1): KeyError: 'frames'")


def test_a_second_ctrl_c_at_one_rank_ends_the_others() -> None:
    first, second = together(waits, fails_with(KeyboardInterrupt()))
    assert isinstance(second, KeyboardInterrupt)
    assert str(first) == "rank 1 (host1): interrupted at once, by a second Ctrl-C"


def test_of_two_failures_the_first_is_the_cause() -> None:
    def follows(board: NoticeBoard) -> None:
        board.meet()
        while not board.has_failed:
            time.sleep(0.01)
        raise RuntimeError("Connection closed by peer [10.0.0.2]:1234")

    first, _ = together(follows, fails_with(RunFailureError("no space left")))
    assert isinstance(first, AnotherRankError)
    assert str(first) == "rank 1 (host1): no space left"
    assert isinstance(first.__cause__, RuntimeError)


def vanishes(board: NoticeBoard) -> None:
    """Stop giving signs of life without having left, as a killed process does."""
    board.meet()
    board._ended.set()


def test_a_rank_that_gives_no_sign_of_life_is_gone_and_is_named() -> None:
    first, _, third = together(
        waits, vanishes, waits, silent_s=2.0
    )  # longer than a busy machine keeps a thread waiting
    for other in (first, third):
        assert isinstance(other, AnotherRankError)
        assert str(other).startswith("rank 1 (host1) is gone without a word")


def test_a_failed_collective_is_explained_by_the_rank_that_is_gone() -> None:
    """Long before the time after which silence alone is taken for death."""

    met = threading.Event()  # else a busy machine finds the other gone before the collective fails

    def collective_fails(board: NoticeBoard) -> None:
        board.meet()
        met.set()
        with board.explained():
            raise RuntimeError("Connection closed by peer")

    def vanishes_afterwards(board: NoticeBoard) -> None:
        board.meet()
        met.wait(20)
        board._ended.set()

    first, _ = together(collective_fails, vanishes_afterwards, beat_s=0.15)
    assert isinstance(first, AnotherRankError)
    assert str(first).startswith("rank 1 (host1) is gone")
    assert str(first).endswith("Noticed here as RuntimeError: Connection closed by peer")


def test_a_busy_machine_that_delays_the_looks_at_the_others_still_finds_who_is_gone() -> None:
    def collective_fails_on_a_busy_machine(board: NoticeBoard) -> None:
        board.meet()
        looks = board._look

        def late() -> None:
            time.sleep(0.3)  # five beats
            looks()

        board._look = late  # type: ignore[method-assign]
        time.sleep(0.3)
        with board.explained():
            raise RuntimeError("Connection closed by peer")

    first, _ = together(collective_fails_on_a_busy_machine, vanishes, beat_s=0.06)
    assert str(first).startswith("rank 1 (host1) is gone")
    assert str(first).endswith("Noticed here as RuntimeError: Connection closed by peer")


def test_a_runtime_error_while_all_are_alive_is_the_rank_s_own() -> None:
    first, second = together(waits, fails_with(RuntimeError("shapes differ")), beat_s=0.15)
    assert isinstance(second, RuntimeError)
    assert not isinstance(second, RunFailureError)
    assert str(first).startswith("rank 1 (host1): RuntimeError: shapes differ")


def test_a_rank_that_left_is_not_missed() -> None:
    has_left = threading.Event()

    def leaves(board: NoticeBoard) -> None:
        board.meet()
        board.leave()
        has_left.set()

    def stays(board: NoticeBoard) -> bool:
        board.meet()
        assert has_left.wait(20)  # a busy machine may take long over that, and is no silence to be found here
        board._silent_s = 0.1
        time.sleep(0.5)
        return board.has_failed

    assert together(stays, leaves)[0] is False


def test_ranks_that_do_not_come_are_named() -> None:
    def alone(board: NoticeBoard) -> None:
        board.exchange("topic", "", timeout_s=0.3)

    def elsewhere(board: NoticeBoard) -> None:
        time.sleep(0.6)

    first, _ = together(alone, elsewhere)
    assert isinstance(first, CommonError)
    assert "ranks 1 of 2 did not come" in str(first)


def test_rank_0_says_once_for_whom_all_wait(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notice_board, "PATIENCE_S", 0.05)
    has_told = threading.Event()

    def first(board: NoticeBoard) -> None:
        board._store.wait(["topic/1"])  # else a busy machine has it wait for both others
        tell = board._tell_of_waiting

        def told(missing: Sequence[int]) -> None:
            tell(missing)
            has_told.set()

        board._tell_of_waiting = told  # type: ignore[method-assign]
        board.exchange("topic", "")

    def early(board: NoticeBoard) -> None:
        board.exchange("topic", "")

    def late(board: NoticeBoard) -> None:
        assert has_told.wait(20)
        time.sleep(0.3)  # it goes on waiting
        board.exchange("topic", "")

    together(first, early, late)
    assert capsys.readouterr().err == "waiting for rank 2 of 3\n"


def test_a_rank_that_is_stuck_in_a_collective_is_ended_with_the_cause(tmp_path: Path) -> None:
    """Its main thread cannot be interrupted, so the process ends, and first what must be recorded is."""
    program = f"""
import sys, time
from torch.distributed import PrefixStore, TCPStore
from vla_rl.learner.notice_board import NoticeBoard
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
PrefixStore("t", store).set("beat/1", "1")
PrefixStore("t", store).set("name/1", "rank 1 (elsewhere)")
settings = dict(name="rank 0 (here)", beat_s=0.05, silent_s=0.3, grace_s=0.3)
with NoticeBoard(PrefixStore("t", store), rank=0, num_ranks=2, **settings) as board:
    board.at_forced_end = lambda cause: open({str(tmp_path / "state")!r}, "w").write(cause)
    board.meet()
    time.sleep(600)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("error: rank 1 (elsewhere) is gone without a word") == 1
    assert (tmp_path / "state").read_text().startswith("rank 1 (elsewhere) is gone")
    told = json.loads((tmp_path / "error.json").read_text())
    assert told["message"]["message"].startswith("rank 1 (elsewhere) is gone")  # as torchrun reads it


def test_the_launcher_s_summary_gets_the_cause(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    together(fails_with(RunFailureError("no space left")))
    assert json.loads((tmp_path / "error.json").read_text())["message"]["message"] == "rank 0 (host0): no space left"


def test_a_rank_without_an_address_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="MASTER_ADDR is None"), ranks_together():
        pass


def test_a_rank_that_does_not_know_its_place_on_its_machine_is_told_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Accelerate would let it train alone on a GPU."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match="but LOCAL_RANK is not"), ranks_together():
        pass


def test_a_port_that_is_taken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(UserError, match="cannot be opened"):
            NoticeBoard.join(0, 2)


def test_an_address_where_nobody_answers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "9")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9 did not answer within 0 s"):
        NoticeBoard.join(1, 2, timeout_s=0.3)


def test_one_rank_alone_needs_no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with ranks_together() as board:
        assert board is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with ranks_together() as board:
        assert board is None


def test_a_name_says_which_launcher_started_the_rank_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUP_RANK", "3")
    monkeypatch.setenv("GROUP_WORLD_SIZE", "4")
    assert own_name(25) == f"rank 25 ({socket.gethostname()}, node 3)"
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    assert own_name(0) == f"rank 0 ({socket.gethostname()})"
