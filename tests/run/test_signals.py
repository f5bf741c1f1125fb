"""Which signals ask a run to end, and when one interrupts it at once."""

import os
import signal
import subprocess
import sys

import pytest

from vla_rl.run.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
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


def test_a_second_hangup_says_nothing_and_ctrl_c_after_it_interrupts():
    with StopRequest() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_under_nohup_a_hangup_is_ignored():
    code = (
        "import os, signal; from vla_rl.run.signals import StopRequest\n"
        "with StopRequest() as stop: os.kill(os.getpid(), signal.SIGHUP); print(stop.requested)"
    )
    done = subprocess.run(["nohup", sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
