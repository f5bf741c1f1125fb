import pytest

from vla_rl.envs.libero.protocol import Protocol


@pytest.mark.parametrize(
    ("suite", "oft", "long"),
    [
        ("libero_spatial", 220, 512),
        ("libero_object", 280, 512),
        ("libero_goal", 300, 512),
        ("libero_10", 520, 520),
        ("libero_90", 400, 512),
    ],
)
def test_the_protocols_allow_their_numbers_of_control_steps(suite, oft, long):
    assert (Protocol("oft").horizon(suite), Protocol("long").horizon(suite)) == (oft, long)


def test_a_protocol_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="--protocol: found 'short'; allowed are oft, long"):
        Protocol("short")  # type: ignore[arg-type]
