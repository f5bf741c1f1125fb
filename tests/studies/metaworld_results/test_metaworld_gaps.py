"""A Meta-World study that is not complete: missing runs, runs that cannot be read, grids of different tasks."""

import html
import json
import shutil
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")

from typer.testing import CliRunner
from written_study import GRID, RANDOM, TASKS, end_with, parts_of, study_with, words_of

from vla_rl.cli.main import app
from vla_rl.studies.metaworld import outputs as metaworld_outputs
from vla_rl.studies.metaworld.grid import StudyRun
from vla_rl.studies.metaworld.missing import MissingRun, missing_part
from vla_rl.studies.metaworld.outputs import write_study
from vla_rl.studies.metaworld.results import RunTable, read_results
from vla_rl.studies.metaworld.scores import (
    improvements,
    scores,
)
from vla_rl.studies.metaworld.words import cautions


def test_a_study_that_is_not_finished_says_so(study, monkeypatch):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    (study / "runs" / "push-v3_ppo_stale_seed1").rename(study / "runs" / "push-v3_ppo_stale_seed1.unfinished")
    for path in (study / "runs" / "push-v3_ppo_stale_seed1.unfinished").glob("study_run.json"):
        path.unlink()
    shutil.rmtree(study / "runs" / "door-open-v3_ppo_stale_seed1")
    write_study(study)
    summary = (study / "results" / "summary.md").read_text(encoding="utf-8")
    assert "PARTIAL: 2 of 12 runs are missing" in summary
    assert "| unfinished | stale | push-v3 | ppo | 1 | 1 |" in summary
    assert "| not begun | stale | door-open-v3 | ppo | 1 | 1 |" in summary


def test_missing_runs_are_told_in_blocks_that_cover_each_once():
    grid = replace(GRID, seeds=4)
    failed = StudyRun("push-v3", "ppo", "stale", 1)
    missing = [
        MissingRun(run, "failed" if run == failed else "not begun")
        for run in grid.runs()
        if run.seed >= 2 or (run.task == "push-v3" and run.seed == 1)
    ]
    assert missing_part(missing).rows == (
        ("not begun", "stale", "push-v3", "gipo:0.5, gipo", "1, 2, 3", "6"),
        ("failed", "stale", "push-v3", "ppo", "1", "1"),
        ("not begun", "stale", "door-open-v3", "gipo:0.5, gipo", "2, 3", "4"),
        ("not begun", "stale", "door-open-v3, push-v3", "ppo", "2, 3", "4"),
    )


def test_a_complete_study_has_no_table_of_missing_runs(study):
    assert "Missing runs" not in {part.title for part in parts_of(study)}


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        (
            "study_run.json",
            "{}",
            "study_run.json: expected task, surrogate, regime, seed and seconds of a run, found n",
        ),
        ("study_run.json", '{"task": ', "study_run.json: expected JSON"),
        ("manifest.json", None, "manifest.json: expected a JSON object, found no such file"),
        ("manifest.json", '{"source": ', "manifest.json: expected JSON"),
        ("metrics.jsonl", None, "metrics.jsonl"),
        ("metrics.jsonl", "", "metrics.jsonl: expected returns up to the end of the run, found none"),
        ("recipe.yaml", None, "recipe.yaml"),
        ("recipe.yaml", "name: [", "recipe.yaml"),
    ],
)
def test_a_run_that_cannot_be_read_is_left_out_and_told(study, monkeypatch, file, content, complaint):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    path = study / "runs" / "push-v3_ppo_stale_seed1" / file
    path.unlink() if content is None else path.write_text(content, encoding="utf-8")
    write_study(study)
    for page in (study / "results" / "summary.md", study / "report.html"):
        text = html.unescape(page.read_text(encoding="utf-8"))
        assert "11 of 12 runs" in text
        assert "PARTIAL" not in text
        told = text.split("LEFT OUT: push-v3_ppo_stale_seed1: ")[1].splitlines()[0]
        assert complaint in told


@pytest.mark.parametrize("field", [{"surrogate": "gipo"}, {"regime": "fresh"}, {"seed": 0}, {"task": "door-open-v3"}])
def test_a_run_whose_recipe_is_of_another_run_is_left_out(study, field):
    path = study / "runs" / "push-v3_ppo_stale_seed1" / "study_run.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | field), encoding="utf-8")
    (sentence,) = read_results(study)[1]
    assert "as study_run.json says, found one of push-v3_ppo_stale_seed1" in sentence


def test_a_run_that_has_another_sigma_than_its_recipe_is_left_out(study):
    path = study / "runs" / "push-v3_gipo-0.5_stale_seed1" / "study_run.json"
    text = path.read_text(encoding="utf-8").replace("gipo:0.5", "gipo:0.2")
    path.write_text(text, encoding="utf-8")
    (sentence,) = read_results(study)[1]
    assert "recipe of push-v3_gipo-0.2_stale_seed1, as study_run.json says, found one of push-v3_gipo-0.5" in sentence


def test_a_study_of_which_no_run_can_be_read_is_refused(study):
    for path in study.glob("runs/*/metrics.jsonl"):
        path.unlink()
    with pytest.raises(ValueError, match=r"no run of the study can be read; door-open-v3_gipo-0\.5_stale_seed0: .*"):
        read_results(study)


@pytest.mark.parametrize("content", ["{}", "[]", '{"tasks": ["push-v3"]', '{"tasks": "push-v3"}'])
@pytest.mark.parametrize("verb", [["report"], ["study", "metaworld", "--out"]])
def test_a_study_that_cannot_be_read_is_the_users_to_fix(study, verb, content):
    (study / "study.json").write_text(content, encoding="utf-8")
    done = CliRunner().invoke(app, [*verb, str(study)])
    assert done.exit_code == 2
    assert f"error: {study / 'study.json'}: expected " in done.output


def test_a_study_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no run of the study has finished"):
        read_results(tmp_path)


def test_a_regime_on_fewer_tasks_than_another_has_its_scores_and_comparisons(merged):
    ranking = {(score.regime, score.surrogate): score for score in scores(RunTable(merged), RANDOM)}
    assert len(ranking) == 4
    assert ranking["stale", "gipo"].tasks == TASKS
    assert ranking["stale", "gipo"].iqm == pytest.approx(0.4)  # the middle half of 0.2, 0.2, 0.6, 0.6
    fresh = ranking["fresh", "gipo"]
    assert (fresh.seeds, fresh.tasks, fresh.iqm) == (2, ("door-open-v3",), pytest.approx(0.4))  # of 0.3 and 0.5
    (pair,) = [entry for entry in improvements(RunTable(merged), RANDOM) if entry.regime == "fresh"]
    assert (pair.tasks, pair.seeds) == (("door-open-v3",), (2, 3))
    assert pair.probability == pytest.approx(2 / 6)  # 2500 is above 2000 twice
    assert (pair.test.pairs, pair.test.higher, pair.test.lower, pair.test.p) == (2, 1, 1, 1.0)


def test_fresh_and_stale_are_compared_on_common_tasks_and_seeds(study, merged):
    """Stale GIPO has 0.4 on both tasks, and 0.2 on the one that fresh has; fresh PPO's seed 2 has no stale run."""
    told = words_of(study, results=merged)
    assert [each for each in told if " on fresh and " in each] == [
        f"{surrogate}: IQM {fresh} on fresh and {stale} on stale experience on door-open-v3, 2 seed(s) of both, after "
        "as many updates; a fresh run has simulated many times the env steps."
        for surrogate, fresh, stale in (("gipo", "0.400", "0.200"), ("ppo", "0.400", "0.100"))
    ]
    fresh = next(each for each in told if each.startswith("fresh: a run of gipo"))
    assert fresh.endswith("with equal seeds 1 of 2 on door-open-v3.")


def test_a_sweep_over_fewer_tasks_is_compared_on_these_with_all_that_have_them(study, merged):
    """GIPO with sigma 0.5 ends with 1500 on door-open alone; GIPO with sigma 1 has 1000 there and more on push."""
    sweep = [end_with(merged[0], 1500.0, surrogate="gipo:0.5", seed=seed) for seed in (0, 1)]
    results = RunTable([*(each for each in merged if each.run.regime == "stale"), *sweep])
    found = [(score.surrogate, len(score.tasks), round(score.iqm, 6)) for score in scores(results, RANDOM)]
    assert found == [
        ("gipo", 2, 0.4), ("ppo", 2, 0.1),
        ("gipo:0.5", 1, 0.3), ("gipo", 1, 0.2), ("ppo", 1, 0.1),
    ]  # fmt: skip
    told = words_of(study, results=results)
    assert "stale: IQM of the normalised score on door-open-v3: gipo:0.5 0.300 (no interval), gipo 0.200 (no" in told[3]
    assert "stale: GIPO by σ (and factor for bad actions) on door-open-v3: σ 0.5 (1) 0.300, σ 1 (1) 0.200." in told
    pairs = {(entry.first, entry.second): entry for entry in improvements(results, RANDOM)}
    assert (pairs["gipo", "gipo:0.5"].probability, pairs["gipo", "gipo:0.5"].test.pairs) == (0.0, 2)
    study_parts = parts_of(study, results=results)
    table = next(part for part in study_parts if part.title == "Scores")
    assert (
        "stale: only scores of the same tasks can be compared. 2 tasks: door-open-v3, push-v3; 1 tasks: door-open-v3."
    ) in table.sentences
    assert [row[-1] for row in table.rows] == ["2 × 2"] * 2 + ["2 × 1"] * 3
    beside = next(part for part in study_parts if part.title == "Beside the paper")
    assert ("stale", "settings above every other surrogate", "GIPO", "6 of 6", "2 of 2 (1 tasks)") in beside.rows


def test_a_reader_is_warned_where_means_are_over_different_tasks(study, merged):
    warning = (
        "Not all have the same tasks. door-open-v3, push-v3: gipo stale, ppo stale; door-open-v3: gipo fresh, "
        "ppo fresh. Scores are compared on common tasks; means over runs are over the tasks that each has."
    )
    assert warning in cautions(study_with(study, results=merged))
    alike = [each for each in merged if each.run.regime == "stale"]
    assert "same tasks" not in "\n".join(cautions(study_with(study, results=alike)))


def test_an_unfinished_pair_says_which_seeds_its_numbers_are_of(study, merged):
    """PPO's seed 1 lacks push: the probability is of the seeds 0 and 1 against 0, the sign test of three pairs."""
    left = [
        each
        for each in merged
        if each.run.regime == "stale" and (each.run.surrogate, each.run.task, each.run.seed) != ("ppo", "push-v3", 1)
    ]
    (pair,) = improvements(RunTable(left), RANDOM)
    assert (pair.seeds, pair.test.pairs, pair.test.higher) == ((2, 1), 3, 3)
    told = next(each for each in words_of(study, results=left) if each.startswith("stale: a run of gipo"))
    assert ", of the 2 and 1 seeds that have all common tasks; " in told
    table = next(part for part in parts_of(study, results=left) if part.title == "Probability of improvement")
    assert table.rows[0][5:8] == ("no interval", "2, 1 × 2", "3, 0 of 3")


def test_surrogates_without_a_common_task_are_named_as_not_compared(study, merged):
    apart = [
        each for each in merged
        if each.run.regime == "stale" and (each.run.surrogate == "ppo") == (each.run.task == "push-v3")
    ]  # fmt: skip
    assert improvements(RunTable(apart), RANDOM) == []
    told = words_of(study, results=apart)
    assert (
        "stale: not compared yet, for they have no task in common or no seed on all common tasks: gipo and ppo." in told
    )
