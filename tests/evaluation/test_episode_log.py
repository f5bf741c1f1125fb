import json
from typing import Any

import pytest

from vla_rl.evaluation.episode_log import EpisodeLog, EpisodeResult, read_episodes


def episode(init_state, *, success=True, **more):
    values: dict[str, Any] = {"suite": "libero_goal", "task_id": 2, "seed": 7, "env_steps": 88, "seconds": 3.5}
    values["episode_return"] = 1.0
    return EpisodeResult(init_state=init_state, success=success, **(values | more))


def test_an_episode_is_one_line(tmp_path):
    path = tmp_path / "eval" / "episodes.jsonl"
    with EpisodeLog(path) as log:
        log.append(episode(4))
        assert path.read_text() == (
            '{"suite": "libero_goal", "task_id": 2, "init_state": 4, "seed": 7, "success": true, "env_steps": 88, '
            '"episode_return": 1.0, "seconds": 3.5, "init_states": "standard"}\n'
        )


def test_an_interrupted_evaluation_knows_what_was_done(tmp_path):
    path = tmp_path / "episodes.jsonl"
    with EpisodeLog(path) as log:
        log.append(episode(0))
        log.append(episode(1, success=False))
    with EpisodeLog(path) as log:
        assert log.done == {("libero_goal", 2, "standard", 0, 7), ("libero_goal", 2, "standard", 1, 7)}
        log.append(episode(2))
        assert log.episodes == (episode(0), episode(1, success=False), episode(2))
    assert read_episodes(path) == [episode(0), episode(1, success=False), episode(2)]


def test_a_torn_last_line_is_removed_and_its_episode_is_still_to_do(tmp_path):
    path = tmp_path / "episodes.jsonl"
    with EpisodeLog(path) as log:
        log.append(episode(0))
        log.append(episode(1))
    path.write_bytes(path.read_bytes()[:-9])
    assert read_episodes(path) == [episode(0)]
    with EpisodeLog(path) as log:
        assert ("libero_goal", 2, "standard", 1, 7) not in log.done
        log.append(episode(1))
    assert [json.loads(line)["init_state"] for line in path.read_text().splitlines()] == [0, 1]


def test_an_episode_is_not_counted_twice(tmp_path):
    path = tmp_path / "episodes.jsonl"
    with EpisodeLog(path) as log:
        log.append(episode(0))
        with pytest.raises(ValueError, match="libero_goal task 2 standard init state 0 seed 7 was recorded before"):
            log.append(episode(0, success=False))
    path.write_text(path.read_text() * 2)
    with pytest.raises(ValueError, match=r"line 2: .* standard init state 0 seed 7 stands twice"):
        read_episodes(path)


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"suite": "libero_goal"}'])
def test_a_broken_line_is_an_error_that_names_it(tmp_path, line):
    path = tmp_path / "episodes.jsonl"
    with EpisodeLog(path) as log:
        log.append(episode(0))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=r"episodes.jsonl, line 2: expected .* found"):
        read_episodes(path)
