"""Fakes of a child process, a cache of one's own, and folders of assets to damage."""

import pytest

from vla_rl.envs.libero.child import Outcome


class FakeChild:
    """Answers in the order given, and keeps what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def __call__(self, code, *arguments, seconds, variables=None):
        assert seconds > 0
        self.asked.append((arguments, variables or {}))
        return self.answers.pop(0)


@pytest.fixture
def child():
    """`child("out")` answers with a last line of output, `child(fail="why")` with a failure."""

    def make(*outputs, fail=None):
        answers = [Outcome(ok=True, output=output, reason="") for output in outputs]
        if fail is not None:
            answers.append(Outcome(ok=False, output="", reason=fail))
        return FakeChild(*answers)

    return make


@pytest.fixture(autouse=True)
def surroundings_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("VLA_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("VLA_RL_LIBERO_ASSETS", raising=False)
