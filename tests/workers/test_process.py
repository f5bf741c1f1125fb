import os
import signal
import time
from multiprocessing import get_context

import pytest

from vla_rl.workers.process import start_child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_the_terminal_does_not_end_a_child_that_has_not_begun_its_work(number):
    child = get_context("spawn").Process(target=time.sleep, args=(0.0,))
    start_child(child)
    assert child.pid
    os.kill(child.pid, number)  # its interpreter is starting
    child.join(60)
    assert child.exitcode == 0


def test_ctrl_c_still_reaches_the_parent():
    child = get_context("spawn").Process(target=time.sleep, args=(0.0,))
    start_child(child)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    child.join(60)
