"""The page and the words of a Meta-World study: what they tell, and of what they warn."""

import csv
import shutil
from dataclasses import replace

import pytest

pytest.importorskip("matplotlib")

from typer.testing import CliRunner
from written_study import TASKS, parts_of, results_of, words_of

from vla_rl.cli.main import app
from vla_rl.evaluation.statistics import Interval
from vla_rl.recipe import find_recipe
from vla_rl.studies.metaworld import outputs as metaworld_outputs
from vla_rl.studies.metaworld.curves import metric_band
from vla_rl.studies.metaworld.outputs import write_study
from vla_rl.studies.metaworld.results import RunTable
from vla_rl.studies.metaworld.scores import (
    Improvement,
)
from vla_rl.studies.metaworld.sign_test import SignTest


def test_tables_and_figures_of_an_earlier_call_do_not_outlive_their_data(study, monkeypatch):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    (study / "results").mkdir()
    for name in ("scores.csv", "sigma.png", "sigma.svg", "notes.csv"):
        (study / "results" / name).touch()
    for name in ("push-v3*seed0", "door-open-v3*seed1"):  # no seed has every task of what is there: there is no score
        for folder in study.glob(f"runs/{name}"):
            shutil.rmtree(folder)
    write_study(study)
    names = {path.name for path in (study / "results").iterdir()}
    assert "notes.csv" in names
    assert not names & {"scores.csv", "improvements.csv", "sigma.png", "sigma.svg"}


@pytest.mark.slow
def test_a_study_writes_tables_figures_and_a_page(study):
    written = {path.name for path in write_study(study).files}
    tables = {f"{name}.csv" for name in ("runs", "scores", "improvements", "curves", "trajectories", "points")}
    figures = ("learning_curves", "scores", "staleness", "utilization", "kl_ess", "lag_tails", "sigma")
    assert written == tables | {f"{name}.{kind}" for name in figures for kind in ("png", "svg")} | {
        "summary.md",
        "report.html",
    }
    with (study / "results" / "runs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {row["policy_lag/old_fraction"] for row in rows} == {"0.9"}
    summary = (study / "results" / "summary.md").read_text(encoding="utf-8")
    assert "12 of 12 runs: gipo:0.5, gipo, ppo on door-open-v3, push-v3" in summary
    assert "PARTIAL" not in summary
    assert "**stale: 2 seed(s) of some surrogate on every task: intervals over fewer than 5 say nothing." in summary
    assert "| push-v3 | stale | gipo | 1000, 2000 |" in summary
    page = (study / "report.html").read_text(encoding="utf-8")
    assert "<h1>Meta-World: surrogates on old and new experience</h1>" in page
    assert page.count("data:image/png") == len(figures)
    assert "http" not in page.replace("http://www.w3.org", "")


def test_the_words_tell_success_on_every_task_and_say_that_there_was_none(study):
    results = [
        replace(result, records=[each | {"rollout/success_rate": 0.25 if result.run.task == "push-v3" else 0.0}
                                 for each in result.records])
        for result in results_of(study)
    ]  # fmt: skip
    assert (
        "stale: training episodes with a success in some control step, on door-open-v3: gipo:0.5 0.0 %, gipo 0.0 %, "
        "ppo 0.0 %; on push-v3: gipo:0.5 25.0 %, gipo 25.0 %, ppo 25.0 %."
    ) in words_of(study, results=results)


def test_the_paper_s_numbers_stand_beside_those_that_measure_the_same(study):
    results = [
        replace(result, records=[each | {"ratio/abs_log_p95": 0.5} for each in result.records])
        if (result.run.task, result.run.surrogate) == ("push-v3", "ppo") else result
        for result in results_of(study)
    ]  # fmt: skip
    (part,) = (part for part in parts_of(study, results=results) if part.title == "Beside the paper")
    rows = {row[:3]: row[3:] for row in part.rows}
    iqm, drift = "IQM of the normalised score", "P95 of abs(log ρ)"
    assert rows["stale", iqm, "gipo"] == ("0.730", "0.300 (0.200 to 0.400)")
    assert rows["stale", iqm, "ppo"] == ("0.180", "0.030 (0.020 to 0.040)")
    assert rows["stale", "settings above every other surrogate", "GIPO"] == ("6 of 6", "1 of 2")
    assert rows["stale", "old fraction", "gipo"] == ("0.884 ± 0.003", "0.9 ± 0")
    assert rows["stale", drift, "gipo"] == ("1.46 ± 0.75", "1.5 ± 0")
    assert rows["stale", drift, "ppo"] == ("1.46 ± 0.75", "1 ± 0.707")  # 1.5 and 0.5
    assert len(rows) == len(part.rows) == 7
    assert "100,000 updates, these 6,000" in part.sentences[0]


def test_over_one_task_there_is_no_deviation_and_over_other_surrogates_no_paper(study):
    results = results_of(study)
    (part,) = (
        part for part in parts_of(study, results=results.where(task="push-v3")) if part.title == "Beside the paper"
    )
    assert ("stale", "old fraction", "ppo", "0.884 ± 0.003", "0.9") in part.rows
    others = parts_of(study, results=results.where(surrogate="gipo:0.5"))
    assert "Beside the paper" not in {part.title for part in others}


def test_report_takes_the_folder_of_a_study(study, monkeypatch):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    done = CliRunner().invoke(app, ["report", str(study)])
    assert done.exit_code == 0, done.output
    assert (study / "report.html").exists()


def test_runs_and_studies_share_a_page(study, tmp_path, monkeypatch):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    run = study / "runs" / "push-v3_ppo_stale_seed1"
    page = tmp_path / "both.html"
    done = CliRunner().invoke(app, ["report", str(study), str(run), "--out", str(page)])
    assert done.exit_code == 0, done.output
    text = page.read_text(encoding="utf-8")
    assert f"<h1>{study.resolve().name}, {run.name}</h1>" in text
    assert text.index("In words") < text.index("What the numbers mean")


def test_studies_of_one_name_are_both_on_the_page(study, tmp_path, monkeypatch):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    for place in ("a", "b"):
        shutil.copytree(study / "runs", tmp_path / place / "same" / "runs")
        shutil.copy(study / "study.json", tmp_path / place / "same")
    settings = (tmp_path / "b" / "same" / "study.json").read_text(encoding="utf-8")
    (tmp_path / "b" / "same" / "study.json").write_text(settings.replace('"seeds": 2', '"seeds": 3'), encoding="utf-8")
    page = tmp_path / "both.html"
    done = CliRunner().invoke(app, ["report", *(str(tmp_path / place / "same") for place in "ab"), "--out", str(page)])
    assert done.exit_code == 0, done.output
    text = page.read_text(encoding="utf-8")
    first, second = text.index("<h2>Study same</h2>"), text.index("<h2>Study same (2)</h2>")
    assert first < text.index("12 of 12 runs") < second < text.index("12 of 18 runs")


def test_the_words_say_what_the_numbers_carry(study):
    words = "\n".join(words_of(study))
    assert (
        "samples were 50 versions old in the mean (P95 95), 90.0 % of them old, that is 600 versions or more" in words
    )
    assert "stale: IQM of the normalised score: gipo 0.300" in words
    assert "a run of gipo ends above one of ppo with probability 1.00" in words
    assert (
        "too few seeds to tell from chance, 0.5); with equal seeds 2 of 2 on door-open-v3, 2 of 2 on push-v3." in words
    )
    assert "a run of gipo:0.5 ends above one of ppo with probability 0.50" in words
    assert "GIPO by σ (and factor for bad actions): σ 0.5 (1) 0.030, σ 1 (1) 0.300." in words
    assert "fresh" not in words


def test_a_study_without_old_samples_does_not_speak_of_their_effective_number(study):
    results = [
        replace(result, records=[each | {"policy_lag/old_fraction": 0.0} for each in result.records])
        for result in results_of(study)
    ]
    assert "ESS" not in "\n".join(words_of(study, results=results))
    assert "ESS of old samples 0.9" in "\n".join(words_of(study))
    assert metric_band(RunTable(results), "utilization/ess_old") is None


def test_the_words_tell_a_difference_from_chance_with_enough_seeds(study):
    results = [replace(result, run=replace(result.run, seed=seed)) for result in results_of(study) for seed in range(5)]
    words = "\n".join(words_of(study, results=results))
    # Ten pairs of ten: 2 / 2^10; five seeds of five: 2 / 2^5. Ties say nothing.
    assert (
        "one of ppo with probability 1.00 (no interval; redrawing seeds changes nothing; exact sign test of the pairs "
        "of equal seed and task, 10 higher and 0 lower: p = 0.002, and 0.062 with the pairs of one seed as one, for "
        "they share their first weights); with equal seeds 5 of 5" in words
    )
    assert "one of ppo with probability 0.50 (no interval; redrawing seeds changes nothing; " in words
    assert "0 higher and 0 lower: p = 1)" in words
    assert "1.00 to 1.00" not in words


def test_few_seeds_in_one_regime_do_not_silence_the_other(study):
    stale = [replace(r, run=replace(r.run, seed=seed)) for r in results_of(study) for seed in range(5)]
    fresh = [replace(r, run=replace(r.run, regime="fresh")) for r in results_of(study)]
    told = parts_of(study, results=[*stale, *fresh])[0].sentences
    pairs = {regime: [each for each in told if each.startswith(f"{regime}: a run of gipo ends above one of ppo")]
             for regime in ("stale", "fresh")}  # fmt: skip
    assert "redrawing seeds changes nothing" in pairs["stale"][0]
    assert "too few seeds to tell from chance" in pairs["fresh"][0]


def test_the_words_go_by_the_interval_where_there_is_one(study):
    results = [replace(r, run=replace(r.run, seed=seed)) for r in results_of(study) for seed in range(5)]
    pair = Improvement(
        "stale", "gipo", "ppo", TASKS, (5, 5), 0.8, Interval(0.6, 1.0),
        interval_by_seed=None, test=SignTest(10, higher=8, lower=2, p=0.11, p_by_seed=0.4),
        solving=SignTest(10, higher=0, lower=0, p=1.0, p_by_seed=1.0),
    )  # fmt: skip
    unsure = replace(pair, interval=Interval(0.4, 1.0))
    words = "\n".join(words_of(study, results=results, improvements=[pair, unsure]))
    assert (
        "probability 0.80 (0.60 to 1.00; the interval excludes chance, 0.5, if the runs of one seed are independent; "
        "exact sign test p = 0.11, and 0.4 with the pairs of one seed as one; one of 2 comparisons, for which nothing "
        "is corrected)"
    ) in words
    assert "probability 0.80 (0.40 to 1.00; cannot be told from chance, 0.5)" in words


def test_the_words_say_at_which_learning_rate_closing_values_are_measured(study):
    """Ten log points, the last three in the closing window: rates of 1 and then 0.1, dead shares of 0.5 and then 0."""
    results = [
        replace(
            result,
            records=[
                each | {"learner/policy_lr": 0.1 if late else 1.0, "utilization/dead": 0.0 if late else 0.5}
                for each in result.records
                for late in [each["env_steps"] >= 800]
            ],
        )
        for result in results_of(study)
    ]
    words = "\n".join(words_of(study, results=results))
    assert "stale: closing values are measured at 10.0 % of the largest learning rate, where a policy hardly" in words
    assert "; ppo 35.0 % (0.0 %) dead, - (-) near zero, P95 of |log ρ| 1.5 (1.5)." in words
    whole = next(part for part in parts_of(study, results=results) if part.title == "While the policy moved")
    cells = dict(zip(whole.header, whole.rows[0], strict=True))
    assert (cells["dead share, whole run"], cells["dead share, closing"]) == ("0.35", "0")
    assert "learning rate" not in "\n".join(words_of(study))  # its log points have none


def test_the_page_tells_what_runs_were_made_with(study, monkeypatch):
    monkeypatch.setattr(metaworld_outputs, "write_figures", lambda *_: [])
    page = "".join(write_study(study).sections)
    assert "All runs were made with the same sources and versions" in page
    assert page.count("<summary>manifest of ") == 12
    assert "recipe of door-open-v3_gipo-0.5_stale_seed0" in page
    manifest = study / "runs" / "push-v3_ppo_stale_seed1" / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace("abc", "def"), encoding="utf-8")
    assert "All runs were made with 2 different sets of sources" in "".join(write_study(study).sections)


def test_a_study_may_have_a_recipe_of_its_own(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        find_recipe("metaworld_stale").read_text(encoding="utf-8").replace("micro_batch: 8", "micro_batch: 32")
    )
    arguments = ["study", "metaworld", "--out", str(tmp_path / "study"), "--dry-run", "--jobs", "2"]
    minutes = [
        float(CliRunner().invoke(app, [*arguments, "--recipe", str(recipe)]).output.split("about ")[1].split()[0])
        for recipe in ("metaworld_stale", own)
    ]
    assert minutes[1] > 1.5 * minutes[0]  # four times the samples, the same env steps
    assert CliRunner().invoke(app, [*arguments, "--recipe", "nonsense"]).exit_code == 2


def test_a_dry_run_says_how_long_a_grid_takes_and_starts_nothing(tmp_path):
    arguments = ["study", "metaworld", "--preset", "full", "--out", str(tmp_path / "study"), "--dry-run"]
    done = CliRunner().invoke(app, [*arguments, "--jobs", "4", "--tasks", "push-v3,door-open-v3", "--seeds", "2"])
    assert done.exit_code == 0, done.output
    assert "32 runs, 4 at once: about 11.2 minutes (44.9 core minutes)" in done.output  # 84.2 s each
    assert not (tmp_path / "study").exists()
