"""What the LIBERO study computes from its jobs, on episodes and records written by hand."""

import csv
import html
import json
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")

from typer.testing import CliRunner

from vla_rl.cli.main import app
from vla_rl.evaluation.episode_log import EpisodeLog, EpisodeResult
from vla_rl.studies.libero.outputs import write_study
from vla_rl.studies.libero.plan import PRESETS, UNCHANGED
from vla_rl.studies.libero.results import read_results, says_something
from vla_rl.studies.libero.runner import open_study
from vla_rl.studies.libero.words import cautions, parts, words

PLAN = replace(
    PRESETS["small"], tasks=(0, 1), arms=("gipo", "ppo", UNCHANGED), regimes=("fresh",), seeds=3, states=10,
    sft_steps=(300, 600), init_states="widened", choice_states=10,
)  # fmt: skip
BEFORE = 0.4
AFTER = {"gipo": 0.9, "ppo": 0.5, UNCHANGED: 0.4}


def episodes(folder, rate, *, name="episodes", states=10):
    """Two tasks; the first `rate` of the states of each succeed."""
    with EpisodeLog(folder / f"{name}.jsonl") as log:
        for task in (0, 1):
            for state in range(states):
                log.append(
                    EpisodeResult(
                        suite="libero_spatial", task_id=task, init_state=state, seed=0, success=state < rate * states,
                        env_steps=100, episode_return=0.0, seconds=1.0,
                    )
                )  # fmt: skip


def finished(out, name, **record):
    folder = out / "jobs" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study_job.json").write_text(json.dumps(record | {"seconds": 60.0}), encoding="utf-8")
    (folder / "manifest.json").write_text(
        json.dumps({"source": {}, "versions": {}, "deviations": ["built-in proxy assets"]}), encoding="utf-8"
    )
    return folder


def finish_run(out, run, *, after):
    folder = finished(out, run.name, stage="run", arm=run.arm, regime=run.regime, seed=run.seed)
    records = [
        {
            "optimizer_steps": step, "env_steps": 100 * step, "decisions": 10 * step, "episodes": step,
            "policy_version": step, "seconds": float(step), "rollout/success_rate": BEFORE if step < 40 else after,
            "learner/kl": 0.002 * (1 + run.seed), "ratio/abs_log_p95": 0.15, "policy_lag/mean": 3.0,
        }
        for step in range(10, 51, 10)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    (folder / "recipe.yaml").write_text(PLAN.recipe_of(run).dump_yaml(), encoding="utf-8")
    for actions in ("sampled", "greedy"):
        own = finished(out, f"{run.name}_{actions}", stage="evaluation", subject=run.name, actions=actions)
        episodes(own, after)


@pytest.fixture
def study(tmp_path):
    """The start succeeds in 40 %, afterwards gipo in 90, ppo in 50, what never changes in 40 %, in all three seeds."""
    open_study(PLAN, tmp_path)
    for step, rate in ((300, 0.0), (600, 0.3)):
        episodes(finished(tmp_path, f"start_{step}", stage="choice", optimizer_steps=step), rate)
    for actions in ("sampled", "greedy"):
        own = finished(tmp_path, f"before_{actions}", stage="evaluation", subject="before", actions=actions)
        episodes(own, BEFORE)
    episodes(tmp_path / "jobs" / "before_sampled", 0.0, name="episodes_blind")
    episodes(tmp_path / "jobs" / "before_sampled", 0.0, name="episodes_instruction")
    for run in PLAN.runs():
        finish_run(tmp_path, run, after=AFTER[run.arm])
    return tmp_path


def data_of(study):
    return read_results(PLAN, study)


def test_a_run_is_compared_with_the_start_state_by_state(study):
    gain = next(gain for gain in data_of(study).gains() if gain.run.arm == "gipo")
    result = gain.comparison
    assert (result.first_rate, result.second_rate) == (0.9, 0.4)
    # States 4 to 8 of either task succeed only afterwards, none only before: mid-p is 2^-10.
    assert (result.test.only_first, result.test.only_second) == (10, 0)
    assert result.test.p_mid == pytest.approx(2.0**-10)


def test_arms_are_compared_over_all_seeds_with_the_pairs_of_a_state_as_one(study):
    pair = next(pair for pair in data_of(study).pairs() if (pair.first, pair.second) == ("gipo", "ppo"))
    assert (pair.seeds, pair.comparison.pairs, pair.comparison.initial_states) == (3, 60, 20)
    # States 5 to 8 of either task, in three seeds each: 24 pairs, but 8 states that decide.
    assert pair.comparison.test.only_first == 24
    assert pair.comparison.test.p_exact == pytest.approx(2.0**-7)


def test_arms_are_compared_on_the_seeds_that_both_have(study):
    (study / "jobs" / "ppo_fresh_seed2_sampled" / "study_job.json").unlink()
    pair = next(pair for pair in data_of(study).pairs() if (pair.first, pair.second) == ("gipo", "ppo"))
    assert (pair.actions, pair.seeds, pair.comparison.unpaired) == ("sampled", 2, 0)


def test_the_goal_is_reached_by_the_arm_that_reaches_it_in_every_seed(study):
    told = [sentence for sentence in words(data_of(study)) if "the goal" in sentence]
    assert len(told) == 2
    assert "gipo, fresh" in told[0]
    assert "is reached: 40.0 % before, 90.0 %, 90.0 %, 90.0 % after, by seed." in told[0]
    assert "is not reached: 40.0 % before, 50.0 %, 50.0 %, 50.0 % after" in told[1]


def rewrite(study, name, rate):
    (study / "jobs" / name / "episodes.jsonl").unlink()
    episodes(study / "jobs" / name, rate)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("gipo_fresh_seed1_sampled", 0.8),  # one seed ends lower
        ("before_sampled", 0.6),  # the start was good already
        ("lr0_fresh_seed2_sampled", 1.0),  # what never changes rose as well
    ],
)
def test_the_goal_is_not_reached_unless_all_of_it_holds(study, name, rate):
    rewrite(study, name, rate)
    told = next(sentence for sentence in words(data_of(study)) if "the goal" in sentence)
    assert "is not reached" in told


def test_the_goal_needs_the_policy_that_never_changes_and_three_seeds(study):
    for path in study.glob("jobs/lr0*/study_job.json"):
        path.unlink()
    told = [sentence for sentence in words(data_of(study)) if "the goal" in sentence]
    assert "is open, for lr0 has not been evaluated: 40.0 % before, 90.0 %" in told[0]
    assert "is not reached: 40.0 % before, 50.0 %" in told[1]


def test_two_seeds_leave_the_goal_open_unless_one_misses_it(study):
    for path in study.glob("jobs/*seed2*/study_job.json"):
        path.unlink()
    told = [sentence for sentence in words(data_of(study)) if "the goal" in sentence]
    assert "is open, for 2 of 3 seeds have been evaluated: 40.0 % before, 90.0 %, 90.0 % after" in told[0]
    assert "is not reached" in told[1]


def test_of_a_given_start_only_what_is_known_is_said(study, tmp_path):
    (study / "jobs" / "before_sampled" / "results.json").write_text(
        json.dumps({"trained_there": ["the policy was trained on the standard initial states"]}), encoding="utf-8"
    )
    data = read_results(replace(PLAN, start=str(tmp_path)), study)
    assert "The start: the policy was trained on the standard initial states" in cautions(data)
    assert any("on which no run was trained." in sentence for sentence in words(data))
    assert any("on which nothing was trained or chosen." in sentence for sentence in words(data_of(study)))


def test_there_is_a_page_once_all_candidates_are_evaluated_and_not_before(tmp_path):
    open_study(PLAN, tmp_path)
    for step, ready in ((300, False), (600, True)):
        episodes(finished(tmp_path, f"start_{step}", stage="choice", optimizer_steps=step), 0.3)
        assert says_something(tmp_path) == ready
    write_study(tmp_path)


def test_the_words_say_what_rose_what_did_not_and_what_cannot_be_told_apart(study):
    told = "\n".join(words(data_of(study)))
    assert "gipo, fresh, greedy actions: 40.0 % before; seed 0 90.0 % after (only after in 10, only before in 0" in told
    assert "lr0, fresh, greedy actions: 40.0 % before and after. It is the start's policy" in told
    assert "fresh, sampled actions: gipo 90.0 %, ppo 50.0 % over 3 seed(s)" in told
    assert "gipo ends higher on these states." in told
    assert "fresh, greedy actions: ppo 50.0 %, lr0 40.0 % over 3 seed(s)" in told
    assert "they cannot be told apart on these states." in told
    assert (
        "cloned for 600 optimizer steps. On 10 other widened states of each task the candidates succeeded in 0 %"
        in told
    )
    assert "gipo, fresh: over the last 20 % of env steps KL 0.004 nat" in told  # the mean of 0.002, 0.004 and 0.006
    assert "before, control blind: 40.0 % without it, 0.0 % with it" in told
    assert "the policy depends on its instruction" in told
    assert "lr0, fresh: over the last" not in told


def test_a_start_that_never_succeeded_is_told(study):
    (study / "jobs" / "start_600" / "episodes.jsonl").unlink()
    episodes(study / "jobs" / "start_600", 0.0)
    assert any("never succeeded there" in sentence for sentence in words(data_of(study)))


def test_whatever_departs_from_the_benchmark_or_is_missing_is_told_first(study):
    assert cautions(data_of(study)) == ["No benchmark score: built-in proxy assets."]
    for path in study.glob("jobs/*seed[12]*/study_job.json"):
        path.unlink()
    told = cautions(data_of(study))
    assert told[0] == "PARTIAL: 6 of 9 runs are missing."
    assert told[1].startswith("one seed of some arm")


def test_a_job_that_cannot_be_read_is_left_out_and_told(study):
    (study / "jobs" / "ppo_fresh_seed0" / "metrics.jsonl").write_text("", encoding="utf-8")
    (study / "jobs" / "gipo_fresh_seed0_greedy" / "episodes.jsonl").write_text("{}\n", encoding="utf-8")
    told = [sentence for sentence in cautions(data_of(study)) if sentence.startswith("LEFT OUT")]
    assert [sentence.split(": ")[1] for sentence in told] == ["gipo_fresh_seed0_greedy", "ppo_fresh_seed0"]
    write_study(study)


def test_everything_is_written_and_the_numbers_are_those_of_the_episodes(study):
    files = {path.name for path in write_study(study).files}
    tables = {"candidates", "runs", "evaluations", "gains", "pairs", "controls", "curves", "drift"}
    assert {f"{name}.csv" for name in tables} <= files
    assert {"success_curves.png", "before_after.png", "drift.png", "README.md", "report.html"} <= files
    with (study / "results" / "gains.csv").open(encoding="utf-8") as file:
        rows = {(row["arm"], row["seed"], row["actions"]): row for row in csv.DictReader(file)}
    assert len(rows) == 3 * 3 * 2
    assert (rows["gipo", "0", "sampled"]["before"], rows["gipo", "0", "sampled"]["after"]) == ("0.4", "0.9")
    with (study / "results" / "curves.csv").open(encoding="utf-8") as file:
        curve = [row for row in csv.DictReader(file) if row["arm"] == "gipo"]
    assert (curve[0]["env_steps"], curve[0]["mean"], curve[-1]["env_steps"], curve[-1]["mean"]) == (
        "1000", "0.4", "5000", "0.9",
    )  # fmt: skip
    page = html.unescape((study / "report.html").read_text(encoding="utf-8"))
    for sentence in parts(data_of(study))[0].sentences:
        assert sentence in page
        assert sentence in (study / "results" / "README.md").read_text(encoding="utf-8")


def test_results_of_an_earlier_call_do_not_outlive_their_data(study):
    write_study(study)
    for path in study.glob("jobs/*_sampled/study_job.json"):
        path.unlink()
    for path in study.glob("jobs/*_greedy/study_job.json"):
        path.unlink()
    write_study(study)
    left = {path.name for path in (study / "results").iterdir()}
    assert not left & {"gains.csv", "pairs.csv", "controls.csv", "before_after.png"}
    assert {"runs.csv", "curves.csv", "success_curves.png"} <= left


def test_videos_are_copied_beside_the_page(study):
    folder = finished(study, "before_videos", stage="videos", subject="before") / "videos"
    folder.mkdir()
    (folder / "libero_spatial_task0_state0_seed0_failure.mp4").write_bytes(b"film")
    write_study(study)
    copy = study / "results" / "videos" / "before_libero_spatial_task0_state0_seed0_failure.mp4"
    assert copy.read_bytes() == b"film"
    page = (study / "results" / "README.md").read_text(encoding="utf-8")
    assert "\n\n## Videos\n" in page
    assert f"(videos/{copy.name})" in page


def test_a_study_of_which_nothing_has_finished_is_refused(tmp_path):
    open_study(PLAN, tmp_path)
    with pytest.raises(ValueError, match="no evaluation and no run has finished yet"):
        write_study(tmp_path)


def test_report_takes_the_folder_of_a_study(study):
    done = CliRunner().invoke(app, ["report", str(study)])
    assert done.exit_code == 0, done.output
    assert (study / "report.html").exists()


def test_a_dry_run_prices_every_stage_and_starts_nothing(tmp_path):
    done = CliRunner().invoke(app, ["study", "libero", "--out", str(tmp_path / "study"), "--dry-run", "--jobs", "2"])
    assert done.exit_code == 0, done.output
    for stage in ("demos", "sft", "choice", "evaluation", "run", "videos"):
        assert f"\n{stage:<12}" in f"\n{done.output}"
    assert "21 jobs, 2 at once: about" in done.output
    assert done.output.startswith("libero_spatial, tasks 2, 7 × gipo, ppo, sapo, lr0 × fresh × seed 0\n")
    assert not (tmp_path / "study").exists()


def test_the_small_preset_fits_in_an_hour_on_two_cores(tmp_path):
    done = CliRunner().invoke(app, ["study", "libero", "--out", str(tmp_path / "study"), "--dry-run", "--jobs", "2"])
    assert float(done.output.split("about ")[-1].split(" minutes")[0]) <= 60


def test_twice_the_updates_or_states_cost_more(tmp_path):
    def minutes(*options):
        arguments = ["study", "libero", "--out", str(tmp_path / "study"), "--dry-run", "--jobs", "2", *options]
        return float(CliRunner().invoke(app, arguments).output.split("about ")[-1].split(" minutes")[0])

    assert minutes("--budget", "320") > 1.5 * minutes()
    assert minutes("--states", "50") > minutes("--states", "5")
