"""Which signals ask a run to end, and when one interrupts it at once."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from vla_rl.run.signals import StopRequest, heed_signals, interrupted_by_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_the_first_signal_is_a_request(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_at_once():
    with StopRequest(), pytest.raises(KeyboardInterrupt):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_what_a_batch_system_says_twice_says_nothing_new(number):
    with StopRequest() as stop:
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert stop.requested


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_a_library_swallowed_while_it_was_imported_is_still_a_request(number):
    with interrupted_by_signals():
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        with StopRequest() as stop:
            assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            heed_signals()
    with StopRequest() as stop:
        assert not stop.requested
    heed_signals()


class _EndsBadly:
    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_within_a_destructor_interrupts_a_moment_later(number, capsys):
    """Python prints what a destructor raises and goes on."""
    with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
        ending = _EndsBadly(number)
        del ending
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            time.sleep(0.01)
    assert capsys.readouterr().err == ""


def test_a_signal_that_comes_within_a_destructor_is_a_request_where_one_is_awaited(capsys):
    with interrupted_by_signals():
        ending = _EndsBadly(signal.SIGTERM)
        del ending
        with StopRequest() as stop:
            assert stop.requested
            time.sleep(0.2)  # a second interruption would end the run without a checkpoint


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_failures_of_destructors_are_reported_as_ever(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_type))
    with interrupted_by_signals():
        ending = _EndsBadly(-1)
        del ending
    assert seen == [OSError]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_rank_only_notes_a_signal_until_its_training_begins(number):
    with interrupted_by_signals(only_noted=True):
        os.kill(os.getpid(), number)
        with StopRequest() as stop:
            assert stop.requested


def test_a_second_hangup_says_nothing_and_ctrl_c_after_it_interrupts():
    with StopRequest() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_under_nohup_a_hangup_is_ignored():
    code = (
        "import os, signal; from vla_rl.run.signals import StopRequest, heed_signals, interrupted_by_signals\n"
        "with StopRequest() as stop: os.kill(os.getpid(), signal.SIGHUP); print(stop.requested)"
    )
    done = subprocess.run(["nohup", sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
