"""All checks together: in order, and none of them able to end the others."""

import threading

import pytest

from vla_rl.doctor.examine import GROUPS, examine
from vla_rl.doctor.record import Check
from vla_rl.errors import SimulatorError


def test_checks_are_told_in_order_whoever_is_first_to_end():
    second_has_ended = threading.Event()

    def slow():
        assert second_has_ended.wait(20)
        return [Check("slow", "ok", "")]

    def quick():
        second_has_ended.set()
        return [Check("quick", "ok", ""), Check("quick too", "ok", "")]

    assert [check.name for check in examine([("a", slow), ("b", quick)])] == ["slow", "quick", "quick too"]


def test_a_missing_package_of_our_own_is_a_finding():
    def without_numpy():
        raise ModuleNotFoundError("No module named 'numpy'")

    (missing, fine) = examine([("memory", without_numpy), ("b", lambda: [Check("b", "ok", "")])])
    assert (missing.name, missing.status) == ("memory", "failed")
    assert "numpy" in missing.found
    assert missing.fix
    assert fine.status == "ok"


@pytest.mark.parametrize(
    ("error", "found", "fix"),
    [
        (PermissionError(13, "Permission denied", "/there"), "Permission denied: '/there'", "repair what it names"),
        (
            SimulatorError("no folder. Fix: name one in VLA_RL_CACHE"),
            "looked at: no folder",
            "name one in VLA_RL_CACHE",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_ends_its_own_group_alone(error, found, fix):
    def look():
        raise error

    (failed, fine) = examine([("disk", look), ("b", lambda: [Check("b", "ok", "")])])
    assert (failed.name, failed.status) == ("disk", "failed")
    assert found in failed.found
    assert failed.fix.startswith(fix)
    assert fine.status == "ok"


def test_groups_have_names_of_their_own():
    names = [name for name, _ in GROUPS]
    assert len(set(names)) == len(names) >= 10
