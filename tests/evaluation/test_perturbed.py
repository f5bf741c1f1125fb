"""Evaluations under perturbations: which episodes are played, what is compared with what, and what is told."""

import csv
import dataclasses
import importlib.util
import json
import re
from functools import partial
from pathlib import Path

import pytest
from test_suite_plans import needs_simulator, options, pretended_simulator  # noqa: F401 - a fixture

from vla_rl.envs.kind import PerturbedTasks
from vla_rl.envs.libero.perturbations.kinds import KINDS, parse_perturbations
from vla_rl.envs.toy import ToySection
from vla_rl.errors import UserError
from vla_rl.evaluation.comparison import compare_evaluations
from vla_rl.evaluation.episode_log import EpisodeLog, EpisodeResult, read_episodes
from vla_rl.evaluation.eval_options import EvalOptions
from vla_rl.evaluation.evaluate import evaluate
from vla_rl.evaluation.perturbed import FOLDER, perturbed_suite, stored_results, table_in_words
from vla_rl.evaluation.policy_source import find_policy
from vla_rl.evaluation.suite_plans import make_suite_plans
from vla_rl.run import plan


class PulledPlugError(Exception):
    """Ends an evaluation in the middle."""


def toy_under(plan, asked, *, numbers):
    """Perturbations for the toy: `none` changes nothing, `short` ends every episode after one control step."""

    def under(kind, level):
        change = {"none": {}, "short": {"horizon": 1}}[kind]
        return PerturbedTasks(
            kind=kind,
            level=level,
            definition={
                "kind": kind, "level": level, "group": "toy", "what": "w", "numbers": {"n": numbers}, "source": "s"
            },
            tasks=plan.tasks,
            builders=tuple(partial(builder, **change) for builder in plan.builders),
        )  # fmt: skip

    names = [entry.split(":") for entry in asked.split(",")]
    return tuple(under(kind, int(level)) for kind, level in names)


@pytest.fixture
def perturbable(monkeypatch):
    def define(numbers=1):
        monkeypatch.setattr(ToySection, "perturbed", lambda _self, plan, asked: toy_under(plan, asked, numbers=numbers))

    define()
    return define


def evaluated(policy, out, *, progress=None, **choices):
    return evaluate(policy, EvalOptions(serial=True, out=out, **choices), progress=progress)


def keys(path):
    return {episode.key for episode in read_episodes(path)}


@pytest.mark.usefixtures("perturbable")
def test_every_episode_is_played_again_under_every_perturbation_and_paired_with_itself(trained, tmp_path):
    told = []
    report = evaluated(
        trained, tmp_path, episodes_per_task=4, seeds=(0, 3), perturb="none:1,short:2,short:5",
        progress=lambda *counts: told.append(counts),
    )  # fmt: skip
    wanted = keys(tmp_path / "episodes.jsonl")
    assert len(wanted) == 16
    for name in ("none_1", "short_2", "short_5"):
        assert keys(tmp_path / FOLDER / f"{name}.jsonl") == wanted
    assert told[-1][:2] == (64, 64)
    drops = {one.label: one.comparison for one in report.perturbed}
    (suite,) = report.summary.suites
    assert drops["none:1"].difference == 0.0
    assert drops["none:1"].test.p_mid == 1.0
    assert drops["short:2"].difference == pytest.approx(suite.success_rate)  # nothing succeeds in one control step
    assert (drops["short:2"].pairs, drops["short:2"].unpaired) == (16, 0)
    assert suite.success_rate > 0  # or the sentence above would say nothing


@pytest.mark.usefixtures("perturbable")
def test_the_unperturbed_results_are_the_same_with_and_without_perturbations(trained, tmp_path):
    for name, choices in (("plain", {}), ("both", {"perturb": "short:1"})):
        evaluated(trained, tmp_path / name, episodes_per_task=3, **choices)
    plain, both = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("plain", "both"))
    perturbed = both.pop("perturbations")
    for results in (plain, both):
        for suite in results["suites"]:
            del suite["seconds"]
    assert plain == both
    assert [(one["kind"], one["level"]) for one in perturbed] == [("short", 1)]
    assert not (tmp_path / "plain" / FOLDER).exists()
    assert not (tmp_path / "plain" / "perturbations.csv").exists()


@pytest.mark.usefixtures("perturbable")
def test_an_interrupted_perturbed_evaluation_goes_on_where_it_was(trained, tmp_path):
    def stop(done, _total, _successes):
        if done >= 9:  # four unperturbed, four under the first
            raise PulledPlugError

    choices = {"episodes_per_task": 2, "perturb": "none:1,short:1"}
    with pytest.raises(PulledPlugError):
        evaluated(trained, tmp_path, progress=stop, **choices)
    files = [tmp_path / FOLDER / f"{name}_1.jsonl" for name in ("none", "short")]
    before = [file.read_bytes() for file in files]
    assert sum(part.count(b"\n") for part in before) == 5
    told = []
    evaluated(trained, tmp_path, progress=lambda *counts: told.append(counts), **choices)
    assert told[-1][:2] == (12, 12)  # those that were played before are counted
    assert all(file.read_bytes().startswith(part) for file, part in zip(files, before, strict=True))
    assert all(keys(file) == keys(tmp_path / "episodes.jsonl") for file in files)


@pytest.mark.usefixtures("perturbable")
def test_perturbations_are_added_to_a_folder_and_kept_in_its_results(trained, tmp_path):
    evaluated(trained, tmp_path, episodes_per_task=2)
    evaluated(trained, tmp_path, episodes_per_task=2, perturb="short:1")
    evaluated(trained, tmp_path, episodes_per_task=2, perturb="short:2")
    report = evaluated(trained, tmp_path, episodes_per_task=3)
    assert [one.label for one in report.perturbed] == ["short:1", "short:2"]
    assert [one.comparison.pairs for one in report.perturbed] == [4, 4]  # the third state of each task is missing
    notes = [note for note in report.summary.notes if "--perturb" in note]
    assert notes[0] == "short:1 has 4 of 6 episodes; --perturb short:1 plays the others."
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [one["numbers"] for one in manifest["extra"]["perturbations"]] == [{"n": 1}, {"n": 1}]


def test_episodes_of_two_definitions_are_never_mixed(trained, tmp_path, perturbable):
    evaluated(trained, tmp_path, episodes_per_task=1, perturb="short:1")
    before = (tmp_path / FOLDER / "short_1.jsonl").read_bytes()
    perturbable(numbers=2)
    with pytest.raises(UserError, match=r"defines short:1 differently, as {'n': 1}; now it is {'n': 2}"):
        evaluated(trained, tmp_path, episodes_per_task=1, perturb="short:1")
    assert (tmp_path / FOLDER / "short_1.jsonl").read_bytes() == before


@pytest.mark.usefixtures("perturbable")
def test_a_broken_definition_is_named(trained, tmp_path):
    evaluated(trained, tmp_path, episodes_per_task=1, perturb="short:1")
    for content in ("[1]", "{", '{"kind": "short"}'):
        (tmp_path / FOLDER / "short_1.json").write_text(content)
        with pytest.raises(UserError, match=r"short_1.json: expected the definition of a perturbation"):
            evaluated(trained, tmp_path, episodes_per_task=1)


def test_an_environment_without_perturbations_says_so(trained, tmp_path):
    with pytest.raises(UserError, match="--perturb: toy has no perturbations; leave the option out"):
        evaluated(trained, tmp_path / "out", perturb="camera:3")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("perturbable")
def test_two_policies_are_compared_under_each_perturbation_that_both_were_played_under(trained, tmp_path):
    for name, asked in (("a", "none:1,short:1"), ("b", "short:1,short:2")):
        evaluated(trained, tmp_path / name, episodes_per_task=2, perturb=asked)
    report = compare_evaluations(tmp_path / "a", tmp_path / "b")
    ((label, comparison),) = report.perturbed
    assert (label, comparison.pairs, comparison.difference) == ("short:1", 4, 0.0)
    assert "short:1: A 0.0 %, B 0.0 %, A - B +0.0 points" in str(report)
    assert json.loads(report.to_json())["perturbed"]["short:1"]["pairs"] == 4


def test_perturbations_with_other_numbers_are_left_out_of_a_comparison(trained, tmp_path, perturbable):
    for name, numbers in (("a", 1), ("b", 2)):
        perturbable(numbers=numbers)
        evaluated(trained, tmp_path / name, episodes_per_task=1, perturb="short:1")
    report = compare_evaluations(tmp_path / "a", tmp_path / "b")
    assert report.perturbed == ()
    assert "mind: they differ in short:1: {'n': 1} and {'n': 2}; left out" in str(report)


def episode(state, success, *, suite="libero_goal"):
    return EpisodeResult(
        suite=suite, task_id=0, init_state=state, seed=0, success=success, env_steps=9, episode_return=0.0, seconds=1.0
    )


def store(folder, kind, level, outcomes):
    (folder / FOLDER).mkdir(exist_ok=True)
    definition = {"kind": kind, "level": level, "group": "g", "what": "w", "numbers": {}, "source": "s"}
    (folder / FOLDER / f"{kind}_{level}.json").write_text(json.dumps({**definition, "instructions": {}}))
    write(folder / FOLDER / f"{kind}_{level}.jsonl", outcomes)


def write(path, outcomes):
    with EpisodeLog(path) as log:
        for state, success in enumerate(outcomes):
            log.append(episode(state, success))


def test_a_drop_is_counted_over_pairs_and_the_blind_control_has_a_line(tmp_path):
    """Of 20 states 16 succeed; under fog the first 10; blind none. McNemar over 6 changed pairs: mid-p 1/64."""
    plain = [episode(state, state < 16) for state in range(20)]
    store(tmp_path, "fog", 3, [state < 10 for state in range(20)])
    write(tmp_path / "episodes_blind.jsonl", [False] * 20)
    results, gaps = stored_results(tmp_path, plain)
    assert gaps == ()
    assert [(one.label, one.success_rate) for one in results] == [("fog:3", 0.5), ("control blind", 0.0)]
    fog = results[0].comparison
    assert (fog.first_rate, fog.difference, fog.test.only_first, fog.test.only_second) == (
        0.8,
        pytest.approx(0.3),
        6,
        0,
    )
    assert fog.test.p_mid == 1 / 64
    assert (results[0].wilson.low, results[0].wilson.high) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    lines = table_in_words(results)
    assert lines[0].startswith("libero_goal: success, and its drop against the same episodes unperturbed")
    assert lines[2].split()[:6] == ["fog:3", "10/20", "50.0%", "29.9", "to", "70.1"]
    assert lines[2].split()[6] == "+30.0"
    assert lines[2].split()[-1] == "0.016"
    assert lines[3].startswith("control blind") and "0/20" in lines[3]
    assert max(map(len, lines)) <= 100


def test_without_perturbations_there_is_no_table_and_no_line_for_the_control(tmp_path):
    write(tmp_path / "episodes_blind.jsonl", [False])
    assert stored_results(tmp_path, [episode(0, True)]) == ((), ())
    assert table_in_words(()) == []


def test_many_comparisons_come_with_a_warning(tmp_path):
    for level in range(1, 11):
        store(tmp_path, "fog", level, [True, False])
    _, gaps = stored_results(tmp_path, [episode(state, True) for state in range(2)])
    assert len(gaps) == 1
    assert gaps[0].startswith("10 perturbations are each compared")


@pytest.mark.usefixtures("perturbable")
def test_table_and_picture_lie_beside_the_results(trained, tmp_path):
    pytest.importorskip("matplotlib")
    report = evaluated(trained, tmp_path, episodes_per_task=1, perturb="none:1,short:1,short:2,none:4")
    with (tmp_path / "perturbations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["level"]) for row in rows] == [
        ("none", "1"),
        ("none", "4"),
        ("short", "1"),
        ("short", "2"),
    ]
    assert float(rows[2]["drop"]) == float(rows[2]["unperturbed_rate"]) - float(rows[2]["success_rate"])
    assert (tmp_path / "perturbations_toy.png").read_bytes().startswith(b"\x89PNG")
    assert [one["level"] for one in json.loads(report.to_json())["perturbations"]] == [1, 4, 1, 2]
    assert "short:2" in str(report)


@needs_simulator
@pytest.mark.usefixtures("pretended_simulator")
def test_libero_s_perturbed_plan_has_a_place_for_every_task_and_perturbation(monkeypatch):
    read = []

    def plan_policy(setup, *, only_acts, tasks):
        read.append([task.language for task in tasks])
        return plan.plan_policy(setup, only_acts=only_acts, tasks=tasks)

    monkeypatch.setattr("vla_rl.evaluation.perturbed.plan_policy", plan_policy)
    source = find_policy("tiny", profile="auto")
    asked = options(suites=("libero_goal",), tasks=(2, 5), episodes_per_task=3, seeds=(0, 1))
    (suite,) = make_suite_plans(source, asked)
    perturbed = perturbed_suite(suite, "camera-orbit:3,wrong-instruction:1,distractors:2")
    env = perturbed.plan.env
    assert [task.task_id for task in env.tasks] == [2, 2, 2, 5, 5, 5]
    labels = [(builder.keywords["task_id"], str(builder.keywords["perturbation"])) for builder in env.builders]
    names = ["camera-orbit:3", "distractors:2", "wrong-instruction:1"]
    assert labels == [(task, name) for task in (2, 5) for name in names]
    own = suite.plan.env.tasks
    told = [task.language for task in env.tasks]
    assert told[0] == told[1] == own[0].language
    assert told[3] == told[4] == own[1].language
    assert len({told[2], own[0].language}) == 2
    # What the policy reads is what the plan says, place by place; and every job is there once.
    assert read == [told]
    assert len(perturbed.jobs) == len({dataclasses.astuple(job) for job in perturbed.jobs}) == 3 * len(suite.jobs)
    assert [job.job_id for job in perturbed.jobs] == list(range(36))
    job = perturbed.jobs[-1]
    assert (str(perturbed.of(job).level), perturbed.of(job).kind) == ("1", "wrong-instruction")
    # Videos: a folder for each perturbation, and above the pictures its name and the instruction that was given.
    filmed = perturbed.filmed(Path("videos"), keep="all", seeds=(0, 1)).plan.env.builders
    assert [builder.keywords["folder"].name for builder in filmed] == [name.replace(":", "_") for name in names] * 2
    assert [builder.keywords["title"] for builder in filmed] == [
        f"{name}: {text}" for name, text in zip(names * 2, told, strict=True)
    ]
    shown = [builder.keywords["build"].keywords for builder in filmed]
    assert [(one["task_id"], str(one["perturbation"]), one["render"]) for one in shown] == [
        (task, name, "every_step") for task, name in labels
    ]


@needs_simulator
@pytest.mark.usefixtures("pretended_simulator")
@pytest.mark.parametrize("asked", ["smoke", "camera:6", "camera:3,light:0"])
def test_what_is_no_perturbation_is_refused_before_anything_starts(tmp_path, asked):
    with pytest.raises(UserError, match=r"^--perturb: '.*Allowed are a kind, a group or all.*Groups: camera, light"):
        evaluate("tiny", options(suites=("libero_goal",), out=tmp_path / "out", perturb=asked))
    assert not (tmp_path / "out").exists()


@needs_simulator
@pytest.mark.libero
@pytest.mark.slow
def test_a_policy_is_evaluated_under_perturbations_of_libero(tmp_path):
    report = evaluate(
        "tiny",
        EvalOptions(
            suites=("libero_spatial",), tasks=(1,), episodes_per_task=2, workers=2, horizon=8, assets="proxy",
            perturb="camera-orbit:3,paraphrase:5,distractors:2", out=tmp_path,
            video="all" if importlib.util.find_spec("imageio_ffmpeg") else None,
        ),
    )  # fmt: skip
    if report.videos is not None:
        assert report.videos == (8, 0)
        names = {f"libero_spatial_task1_state{state}_seed0_failure.mp4" for state in (0, 1)}
        for folder in ("", "camera-orbit_3", "paraphrase_5", "distractors_2"):
            assert {path.name for path in (tmp_path / "videos" / folder).glob("*.mp4")} == names
    assert {one.label for one in report.perturbed} == {"camera-orbit:3", "paraphrase:5", "distractors:2"}
    assert all(one.comparison.pairs == 2 for one in report.perturbed)
    told = {one["kind"]: one for one in json.loads((tmp_path / "manifest.json").read_text())["extra"]["perturbations"]}
    assert told["camera-orbit"]["numbers"]["azimuth_deg"] == {"one_of": [-45.0, 45.0]}
    assert "grab the black bowl" in told["paraphrase"]["instructions"]["libero_spatial"]["0"]


def test_the_documents_name_kinds_and_levels_that_exist():
    root = Path(__file__).parents[2]
    text = (root / "docs" / "evaluation.md").read_text() + (root / "README.md").read_text()
    named = re.findall(r"--perturb ([^\s`]+)", text)
    assert len(named) >= 3
    for asked in named:
        assert parse_perturbations(asked)
    rows = re.findall(r"^\| `([a-z-]+)` \| ([a-z]+) \| .* \| ([\w-]+) \|$", text, re.MULTILINE)
    assert {name: group for name, group, _ in rows} == {kind.name: kind.group for kind in KINDS.values()}
    assert all(KINDS[name].source.startswith(source) for name, _, source in rows)
