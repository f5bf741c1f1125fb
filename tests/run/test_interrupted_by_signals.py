"""Signals that are turned into Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from vla_rl.run.signals import interrupted_by_signals

SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


@pytest.fixture(autouse=True)
def harmless() -> Iterator[list[int]]:
    """Signals that come through, instead of the end of the tests."""
    through: list[int] = []
    before = [signal.signal(each, lambda number, _frame: through.append(number)) for each in SIGNALS]
    yield through
    for each, handler in zip(SIGNALS, before, strict=True):
        signal.signal(each, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_interrupts_and_tidying_up_is_left_alone(number: int, harmless: list[int]) -> None:
    tidied = False
    with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
        try:
            os.kill(os.getpid(), number)
        finally:
            for each in SIGNALS:
                os.kill(os.getpid(), each)
            tidied = True
    assert tidied and not harmless


def test_signals_are_given_back(harmless: list[int]) -> None:
    with interrupted_by_signals():
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    assert harmless == [signal.SIGTERM]


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interrupted_by_signals():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_another_thread_than_the_main_one_catches_nothing() -> None:
    entered = []

    def work() -> None:
        with interrupted_by_signals():
            entered.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [before]
