import base64
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="figures need the extra 'plots'")

from vla_rl.cli.report import compare_runs, report
from vla_rl.errors import UserError
from vla_rl.evaluation.episode_log import EpisodeLog, EpisodeResult
from vla_rl.reporting.catalogue import CATALOGUE
from vla_rl.reporting.metrics_file import read_metrics
from vla_rl.reporting.panels import FIGURES
from vla_rl.reporting.report import COLUMNS, write_report
from vla_rl.reporting.run_folder import read_run
from vla_rl.reporting.run_plots import draw, draw_success_per_task
from vla_rl.reporting.run_summary import run_sentences

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Collects tags, checks that they nest, and keeps the text."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, html):
        super().__init__()
        self.open, self.images, self.links, self.text, self.tags = [], [], [], "", []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.images += [attributes["src"]] if tag == "img" else []
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read_page(path):
    return Page(path.read_text(encoding="utf-8"))


def spec(name):
    return next(figure for figure in FIGURES if figure.name == name)


def test_every_metric_that_is_shown_is_in_the_catalogue():
    drawn = {name for figure in FIGURES for panel in figure.panels for name in panel.metrics}
    assert drawn | {column.metric for column in COLUMNS} <= set(CATALOGUE)


def test_a_figure_draws_the_points_of_its_metric(bare_run):
    records = read_metrics(bare_run / "metrics.jsonl")
    figure = draw(spec("learning"), {"run": records})
    (axes,) = figure.axes  # the other panels have no data
    (line,) = axes.get_lines()
    assert list(line.get_xdata()) == [100.0 * point for point in range(1, 11)]  # type: ignore[arg-type]
    assert list(line.get_ydata()) == pytest.approx([point / 10 for point in range(1, 11)])  # type: ignore[arg-type]


def test_runs_differ_by_colour_and_metrics_by_dashes(bare_run):
    records = read_metrics(bare_run / "metrics.jsonl")
    figure = draw(spec("policy_lag"), {"one": records, "two": records})
    mean_of_one, p95_of_one, mean_of_two, p95_of_two = figure.axes[0].get_lines()
    assert mean_of_one.get_color() == p95_of_one.get_color() != mean_of_two.get_color() == p95_of_two.get_color()
    assert mean_of_one.get_linestyle() == mean_of_two.get_linestyle() != p95_of_one.get_linestyle()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]


def test_runs_of_one_colour_differ_by_dashes_also_in_the_legend(bare_run):
    records = read_metrics(bare_run / "metrics.jsonl")
    figure = draw(spec("learning"), {f"run {number}": records for number in range(7)})
    for lines in (figure.axes[0].get_lines(), figure.legends[0].get_lines()):
        assert lines[0].get_color() == lines[6].get_color()
        assert lines[0].get_linestyle() != lines[6].get_linestyle()


def test_a_metric_that_the_first_run_lacks_is_named_in_the_legend(bare_run):
    records = read_metrics(bare_run / "metrics.jsonl")
    lacking = [{name: value for name, value in record.items() if name != "policy_lag/p95"} for record in records]
    figure = draw(spec("policy_lag"), {"one": lacking, "two": records, "three": records})
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["mean", "p95"]


def test_a_figure_without_data_is_not_drawn(bare_run):
    assert draw(spec("rates"), {"run": read_metrics(bare_run / "metrics.jsonl")}) is None


def test_a_value_that_was_not_finite_leaves_a_gap_not_a_crash(bare_run):
    records = read_metrics(bare_run / "metrics.jsonl")
    (axes,) = draw(spec("optimisation"), {"run": records}).axes
    assert len(axes.get_lines()[0].get_xdata()) == 9  # type: ignore[arg-type]


def test_success_per_task_shows_rate_and_interval():
    tasks = [{"task_id": 4, "success_rate": 0.8, "wilson": {"low": 0.5, "high": 0.9}}]
    (axes,) = draw_success_per_task(tasks, confidence=0.95).axes
    interval, rate = axes.get_lines()
    assert (list(interval.get_xdata()), list(rate.get_xdata())) == ([0.5, 0.9], [0.8])  # type: ignore[arg-type]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["task 4"]


def test_success_per_task_names_what_is_to_be_done_in_two_lines_at_most():
    def name(language):
        task = {"task_id": 4, "language": language, "success_rate": 0.8, "wilson": {"low": 0.5, "high": 0.9}}
        (axes,) = draw_success_per_task([task], confidence=0.95).axes
        return axes.get_yticklabels()[0].get_text()

    assert name("turn on the stove") == "4: turn on the stove"
    assert name("put the bowl " * 4 + "down").splitlines() == [
        "4: put the bowl put the bowl put the bowl put the",
        "bowl down",
    ]
    assert len(name("put the bowl " * 20).splitlines()) == 2


def test_drawing_does_not_touch_the_callers_matplotlib():
    code = "import sys, vla_rl.reporting.report; sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_report_holds_everything_in_one_file(full_report):
    page = read_page(full_report)
    assert len(page.images) == 4
    for source in page.images:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(PNG_MAGIC)
    assert "script" not in page.tags
    assert page.links == page.images
    assert not re.search(r"https?://|@import|url\(", full_report.read_text())


def test_a_report_says_what_was_measured_and_what_to_mind(full_report):
    text = read_page(full_report).text
    for fact in (
        "Training episodes succeeded in 30 % of cases at first and in 90 %",
        "Updates skipped, because a gradient was not finite: 2.",
        "69.9 % – 97.2 %",
        "75.0 % – 100.0 %",
        "abc123 + changes",
        "A & B, 8 cores",
        "64 GB",
        "H200",
        "python 3.11.9, torch 2.13.0",
        "name: toy  # <b>",
        "vla-rl train <toy>",
        CATALOGUE["ratio/abs_log_p95"].meaning,
    ):
        assert fact in text, fact
    assert "deepspeed None" not in text
    assert CATALOGUE["learner/kl"].meaning not in text  # the run has no such metric


def test_a_report_of_a_run_that_died_early_has_what_there_is(bare_run, tmp_path):
    (bare_run / "metrics.jsonl").write_text("")
    write_report([bare_run], tmp_path / "report.html")
    text = read_page(tmp_path / "report.html").text
    assert "There is no manifest" in text
    assert "The run ended before its first log point." in text


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_command_draws_several_runs_together_where_it_is_told(full_run, bare_run, tmp_path, capsys):
    before = contents(full_run) | contents(bare_run)
    report([full_run, bare_run, full_run], out=tmp_path / "all.html")
    page = read_page(tmp_path / "all.html")
    assert "Side by side" in page.text
    assert "full (2)" in page.text
    assert page.tags.count("img") == 3 + 2  # three figures shared by all, one evaluation in each of two runs
    assert contents(full_run) | contents(bare_run) == before
    figures = [f"all_figures/{name}.png" for name in ("learning", "optimisation", "policy_lag")]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in [*figures, "all.html"]]


def test_a_page_elsewhere_leaves_its_run_as_it_is(bare_run, tmp_path, monkeypatch, capsys):
    before = contents(bare_run)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    report([bare_run], out=Path("mine.html"))
    assert contents(bare_run) == before
    figures = [Path(f"mine_figures/{name}.png") for name in ("learning", "optimisation", "policy_lag")]
    assert capsys.readouterr().out.splitlines() == [*map(str, figures), "mine.html"]
    assert all(figure.read_bytes().startswith(PNG_MAGIC) for figure in figures)


def test_returns_are_shown_in_the_envs_own_units(bare_run, tmp_path):
    """The learner's rewards are a hundredth of the env's: a return of 9.5 was one of 950."""
    records = [json.loads(line) for line in (bare_run / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps(record | {"rollout/return": 9.5}) + "\n" for record in records]
    (bare_run / "metrics.jsonl").write_text("".join(lines))
    (bare_run / "manifest.json").write_text(json.dumps({"recipe": {"env": {"reward_scale": 0.01}}}))
    run = read_run(bare_run)
    assert (
        "Training episodes returned 950 at first and 950 over the last 20 % of env steps, in the env's own units."
        in (run_sentences(run))
    )
    returns = draw(spec("learning"), {"run": run.records}).axes[1]
    assert set(returns.get_lines()[0].get_ydata()) == {950.0}  # type: ignore[arg-type]
    (bare_run / "manifest.json").unlink()
    assert "Training episodes returned 9.5 at first and 9.5 over the last 20 % of env steps." in (
        run_sentences(read_run(bare_run))
    )


def test_a_report_about_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path / "report.html")


def test_the_command_writes_page_and_figures_into_the_run(bare_run, capsys):
    report([bare_run])
    written = capsys.readouterr().out.splitlines()
    figures = [f"figures/{name}.png" for name in ("learning", "optimisation", "policy_lag")]
    assert written == [str(bare_run / name) for name in [*figures, "report.html"]]
    assert all((bare_run / name).read_bytes().startswith(PNG_MAGIC) for name in figures)
    assert read_page(bare_run / "report.html").images


def test_without_matplotlib_the_command_says_what_to_install(bare_run):
    code = f"""
import pathlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name=name)

sys.meta_path.insert(0, Missing())
from vla_rl.cli.report import report
report([pathlib.Path({str(bare_run)!r})])
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "UserError: report needs matplotlib" in done.stderr
    assert "pip install 'vla-rl[plots]'" in done.stderr


def evaluated(folder, outcomes, *, seed=0):
    with EpisodeLog(folder / "eval" / "final" / "episodes.jsonl") as log:
        for state, success in enumerate(outcomes):
            log.append(
                EpisodeResult(
                    suite="libero_goal",
                    task_id=0,
                    init_state=state,
                    seed=seed,
                    success=success,
                    env_steps=9,
                    episode_return=0.0,
                    seconds=1.0,
                )
            )
    return folder


def test_runs_are_compared_on_the_episodes_that_both_were_evaluated_on(tmp_path):
    one = evaluated(tmp_path / "one", [True, True, True, True, True, False])
    two = evaluated(tmp_path / "two", [True, False, False, False, False, True])
    other = evaluated(tmp_path / "other", [True], seed=7)
    (sentence,) = compare_runs([one, tmp_path / "never evaluated", two, other])
    # 4 against 1: P(X <= 0) = 1/32, P(X = 1) = 5/32, so mid-p = 2/32 + 5/32.
    assert "one and two, 6 episodes in common: success differs by +50.0 points" in sentence
    assert "only the first succeeded in 4, only the second in 1 (McNemar mid-p 0.22)" in sentence


def test_a_comparison_of_runs_tells_what_else_differs(tmp_path):
    played = {
        "checkpoint": "x", "fingerprint": "abc", "trained_on": "", "protocol": "oft", "horizon": None,
        "temperature": None, "seeds": [0], "init_states": "standard", "assets": "full", "versions": "mujoco 3.3.0",
    }  # fmt: skip
    runs = [evaluated(tmp_path / name, [True, False]) for name in ("one", "two")]
    for run, changed in zip(runs, ({}, {"fingerprint": "def", "assets": "proxy"}), strict=True):
        (run / "eval" / "final" / "evaluation.json").write_text(json.dumps(played | changed))
    (sentence,) = compare_runs(runs)
    assert sentence.endswith("; mind: they differ in assets: full and proxy.")


def test_a_report_of_several_runs_shows_their_comparison(bare_run, tmp_path):
    (bare_run / "metrics.jsonl").write_text("")
    write_report([bare_run, bare_run], tmp_path / "two.html", comparisons=["one beats <two>"])
    assert "one beats <two>" in read_page(tmp_path / "two.html").text


def test_a_run_whose_folder_s_name_is_no_text_has_a_report(bare_run, tmp_path):
    odd = tmp_path / os.fsdecode(b"n\xff")
    bare_run.rename(odd)
    report([odd])
    assert "n\\udcff" in read_page(odd / "report.html").text


def test_a_wrong_folder_is_the_users_to_fix(tmp_path):
    with pytest.raises(UserError, match="expected the folder of a run"):
        report([tmp_path])
