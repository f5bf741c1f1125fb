"""What the dry runs of all studies have in common."""

import re
from dataclasses import replace

import pytest
import typer

pytest.importorskip("matplotlib")

from typer.testing import CliRunner

from vla_rl.cli.main import app
from vla_rl.cli.study import app as study
from vla_rl.recipe import find_recipe, load_recipe
from vla_rl.studies import jobs as study_jobs
from vla_rl.studies import price
from vla_rl.studies.grouped import runner as grouped_runner
from vla_rl.studies.grouped.plan import PRESET, STARTS
from vla_rl.studies.libero import runner as libero_runner
from vla_rl.studies.libero.plan import PRESETS as PLANS
from vla_rl.studies.libero.stages import why_a_guess
from vla_rl.studies.metaworld import runner as metaworld_runner
from vla_rl.studies.metaworld.grid import PRESETS as GRIDS
from vla_rl.studies.study_plan import memory_of_run

# Verbs with dry runs: a small study, a job of it, a study with which it could not share a folder, and its opener.
STUDIES = {
    "metaworld": (
        ["--tasks", "push-v3", "--surrogates", "gipo,ppo", "--seeds", "1"],
        "runs/push-v3_ppo_stale_seed0/study_run.json",
        lambda out: metaworld_runner.open_study(replace(GRIDS["small"], optimizer_steps=6000), out),
        "optimizer_steps 6000",
    ),
    "libero": (
        ["--preset", "tiny"],
        "jobs/demos/study_job.json",
        lambda out: libero_runner.open_study(replace(PLANS["tiny"], states=7), out),
        "states 7",
    ),
    "groups": (
        ["--starts", "0.1", "--methods", "ppo,gipo", "--seeds", "1"],
        "runs/0.1_ppo_seed0/study_run.json",
        lambda out: grouped_runner.open_study(replace(PRESET, starts=(replace(STARTS["0.1"], target=0.8),)), out),
        "start 0.1 has another target",
    ),
}


def dry_run(verb, *more):
    return CliRunner().invoke(app, ["study", verb, *STUDIES[verb][0], *more, "--dry-run"])


def test_every_verb_with_a_dry_run_is_looked_at_here():
    commands = typer.main.get_command(study).commands
    assert set(STUDIES) == {
        verb for verb, command in commands.items() if "dry_run" in [each.name for each in command.params]
    }


@pytest.mark.parametrize("verb", STUDIES)
def test_only_a_dry_run_needs_no_folder(verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = dry_run(verb)
    assert done.exit_code == 0, done.output
    assert " finished" not in done.output
    done = CliRunner().invoke(app, ["study", verb, *STUDIES[verb][0]])
    assert done.exit_code == 2
    assert "error: Missing option '--out'" in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", STUDIES)
def test_a_dry_run_prices_what_a_folder_lacks(verb, tmp_path):
    record = tmp_path / STUDIES[verb][1]
    record.parent.mkdir(parents=True)
    record.touch()
    done = dry_run(verb, "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    jobs = 15 if verb == "libero" else 2
    assert f"\n{jobs - 1} {'runs' if verb == 'metaworld' else 'jobs'} (1 of {jobs} finished), " in done.output


@pytest.mark.parametrize("verb", STUDIES)
def test_a_dry_run_refuses_a_folder_as_the_study_would(verb, tmp_path):
    _, _, open_another, complaint = STUDIES[verb]
    open_another(tmp_path)
    before = (tmp_path / "study.json").read_text(encoding="utf-8")
    for how in (["--dry-run"], []):
        done = CliRunner().invoke(app, ["study", verb, *STUDIES[verb][0], "--out", str(tmp_path), *how])
        assert done.exit_code == 2
        assert complaint in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["study.json"]
    assert (tmp_path / "study.json").read_text(encoding="utf-8") == before


@pytest.mark.parametrize("how", [["--dry-run"], []])
def test_more_runs_than_fit_in_memory_are_priced_and_refused_before_anything_starts(tmp_path, monkeypatch, how):
    monkeypatch.setattr(price, "available_memory", lambda: 2**30)
    monkeypatch.setattr(study_jobs, "run_study", None)  # nothing calls it
    command = ["study", "metaworld", *STUDIES["metaworld"][0], "--out", str(tmp_path / "new"), *how]
    done = CliRunner().invoke(app, [*command, "--jobs", "2"])
    assert done.exit_code == 2
    assert "\n2 runs, 2 at once: about" in done.output
    assert "choose --jobs 1" in done.output
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("verb", STUDIES)
def test_by_default_as_many_runs_are_made_at_once_as_fit_in_memory(verb, monkeypatch):
    monkeypatch.setattr(price, "usable_cores", lambda: 64)
    monkeypatch.setattr(price, "available_memory", lambda: 8 * 2**30)
    done = dry_run(verb)
    assert done.exit_code == 0, done.output
    each, at_once = (
        re.search(pattern, done.output) for pattern in (r"\nmemory: ([0-9.]+) (.)iB each", r", (\d+) at once")
    )
    assert int(at_once[1]) == int(8 * (1024 if each[2] == "M" else 1) / float(each[1]))


@pytest.mark.parametrize("verb", STUDIES)
@pytest.mark.parametrize("free", [None, 2**40])
def test_runs_that_compute_on_a_gpu_go_by_its_memory_where_that_is_known_and_else_one_at_a_time(
    verb, free, monkeypatch
):
    monkeypatch.setattr(price, "usable_cores", lambda: 3)
    monkeypatch.setattr(price, "available_memory", lambda: 2**40)
    monkeypatch.setattr(price, "available_gpu_memory", lambda: free)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    of_toy = ["--target", "0.9", "--budget", "1000", "--recipe", "toy"]  # gates names the CPU
    command = ["study", verb, *(of_toy if verb == "groups" else STUDIES[verb][0]), "--dry-run"]
    done, both = (CliRunner().invoke(app, [*command, *more]) for more in ([], ["--jobs", "2"]))
    assert (done.exit_code, both.exit_code) == (0, 0), done.output + both.output
    assert f", {3 if free else 1} at once: " in done.output
    assert ("share one GPU" in done.output) == (free is None)
    assert ", 2 at once: " in both.output
    assert ("GPU memory: " in both.output) == (free is not None)


def test_runs_that_compute_on_the_cpu_take_all_cores_of_a_machine_with_a_gpu(monkeypatch):
    monkeypatch.setattr(price, "usable_cores", lambda: 3)
    monkeypatch.setattr(price, "available_memory", lambda: 2**40)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    told = dry_run("groups").output
    assert ", 3 at once: " in told
    assert "GPU" not in told


def test_a_run_in_libero_takes_the_memory_of_its_simulators_too():
    recipe = load_recipe(find_recipe("libero_tiny_gipo"), ["rollout.envs_per_worker=2"])
    more = load_recipe(find_recipe("libero_tiny_gipo"), ["rollout.envs_per_worker=3"])
    assert 700 * 2**20 <= memory_of_run(more).host - memory_of_run(recipe).host < 750 * 2**20  # and its slot's arrays


def test_a_dry_run_says_where_its_times_are_a_guess(monkeypatch):
    monkeypatch.setattr(price, "available_memory", lambda: 2**40)
    of_groups = ["study", "groups", "--target", "0.9", "--budget", "1000", "--dry-run", "--recipe"]
    told = {recipe: CliRunner().invoke(app, [*of_groups, recipe]).output for recipe in ("toy", "gates")}
    assert "\ntimes are a guess: the rates are of the recipe gates\n" in told["toy"]
    assert "guess" not in told["gates"] + dry_run("libero").output + dry_run("metaworld").output
    large = load_recipe(find_recipe("libero_spatial_gipo"), ["policy.checkpoint=random-7b"])
    assert re.fullmatch(
        r"the rates are of a policy with 4 million parameters on a CPU, and this one has 7,[0-9]{3} million",
        why_a_guess(large),
    )


@pytest.mark.parametrize("verb", STUDIES)
def test_a_recipe_for_another_machine_is_refused_in_a_sentence(verb, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    base = {"metaworld": "metaworld_stale", "libero": "libero_tiny_gipo", "groups": "gates"}[verb]
    recipe = tmp_path / "own.yaml"
    recipe.write_text(f"base: {base}\nname: own\nruntime:\n  device: cuda\n", encoding="utf-8")
    more = ["--target", "0.9", "--budget", "1000"] if verb == "groups" else []
    done = CliRunner().invoke(app, ["study", verb, "--recipe", str(recipe), *more, "--dry-run"])
    assert done.exit_code == 2, done.output
    assert "error: runtime.device: cuda was asked for, but torch sees no GPU" in done.output
