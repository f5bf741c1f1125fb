"""The page on several machines: its scripts are well formed, and its commands are those of the programs it names."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from vla_rl.cli.main import app
from vla_rl.recipe import find_recipe, load_recipe

PAGE = (Path(__file__).parents[1] / "docs" / "multi_gpu.md").read_text(encoding="utf-8")
BASH = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
MANIFESTS = [
    manifest
    for text in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for manifest in yaml.safe_load_all(text)
]


def of_kind(kind: str) -> dict[str, Any]:
    (manifest,) = [manifest for manifest in MANIFESTS if manifest["kind"] == kind]
    return manifest


def container() -> dict[str, Any]:
    (only,) = of_kind("Job")["spec"]["template"]["spec"]["containers"]
    return only


def commands() -> Iterator[list[str]]:
    """Words of every command that starts ranks, in scripts and in manifests."""
    for text in [*BASH, *container()["args"]]:
        joined = re.sub(r"'exec torchrun (.*?) \"\$@\"' node", r"torchrun \1", text.replace("\\\n", " "))
        joined = re.sub(r"[ \t]+", " ", joined)
        for line in joined.splitlines():
            match = re.search(r"\b(torchrun|accelerate launch|rank vla-rl) .*", line)
            if match is not None and "vla" in line:
                yield shlex.split(match[0].removeprefix("rank ").removesuffix("&"))


COMMANDS = list(commands())
OF_TORCHRUN = [words for words in COMMANDS if words[0] == "torchrun"]
OF_ACCELERATE = [words for words in COMMANDS if words[0] == "accelerate"]


def own_arguments(words: list[str]) -> list[str]:
    """What follows the program's own name."""
    names = [index for index, word in enumerate(words) if word in ("vla_rl", "vla-rl")]
    return words[names[0] + 1 :]


def test_the_page_shows_every_way_to_start_ranks() -> None:
    assert (len(OF_TORCHRUN), len(OF_ACCELERATE), len(COMMANDS)) == (4, 1, 6)


@pytest.mark.parametrize("script", BASH)
def test_a_script_is_well_formed(script: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", OF_TORCHRUN, ids=" ".join)
def test_torchrun_knows_its_options(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    number = re.compile(r"\$\w+")
    parsed, _ = get_args_parser().parse_known_args([number.sub("1", word) for word in words[1:]])
    assert parsed.training_script == "vla_rl"
    assert parsed.module
    assert parsed.nproc_per_node in ("1", "8")


def test_a_launcher_that_is_asked_to_end_waits_longer_than_30_seconds_and_less_than_it_has() -> None:
    """Where the platform kills after a grace period."""
    waits = [
        int(words[words.index("--shutdown-timeout") + 1]) for words in OF_TORCHRUN if "--shutdown-timeout" in words
    ]
    assert waits == [540, 540]
    assert of_kind("Job")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 600
    assert [match for text in BASH for match in re.findall(r"--signal=B:USR1@(\d+)", text)] == ["600", "600"]


@pytest.mark.parametrize("words", OF_ACCELERATE, ids=" ".join)
def test_accelerate_knows_its_options(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    parsed = launch_command_parser().parse_args(words[2:])
    assert (parsed.num_machines, parsed.num_processes, parsed.machine_rank) == (2, 16, 0)
    assert parsed.module
    assert parsed.training_script == "vla_rl"


@pytest.mark.parametrize("arguments", sorted({tuple(own_arguments(words)) for words in COMMANDS}), ids=" ".join)
def test_a_command_of_the_program_is_one_and_its_recipe_is_valid(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy's is dry-run as well; a policy of 7B fits on no machine that runs these tests."""
    monkeypatch.chdir(tmp_path)
    context = typer.main.get_command(app).make_context("vla-rl", [*arguments])
    verb: Any = typer.main.get_command(app).get_command(context, "train")  # type: ignore[attr-defined]
    given = verb.make_context("train", [*arguments[1:]], parent=context).params
    recipe = load_recipe(find_recipe(given["recipe"]), given["overrides"] or [])
    assert recipe.learner.strategy in ("ddp", "deepspeed")
    if given["recipe"] == "toy":
        result = CliRunner().invoke(app, [*arguments, "--dry-run"])
        assert result.exit_code == 0, result.output
        assert "strategy ddp" in result.output


def test_the_manifest_s_parts_fit_together() -> None:
    service, job = of_kind("Service"), of_kind("Job")
    pod = job["spec"]["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    (command,) = container()["args"]
    words = shlex.split(command)
    assert words[0] == "exec"  # torchrun gets the pod's SIGTERM
    assert words[words.index("--master-addr") + 1] == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert words[words.index("--nnodes") + 1] == str(job["spec"]["completions"]) == str(job["spec"]["parallelism"])
    assert words[words.index("--nproc-per-node") + 1] == str(container()["resources"]["limits"]["nvidia.com/gpu"])
    assert {mount["name"] for mount in container()["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("script", [text for text in BASH if "#SBATCH" in text])
def test_a_job_that_queues_again_resumes(script: str) -> None:
    assert "--resume" in script
    assert "#SBATCH --requeue" in script
    assert 'scontrol requeue "$SLURM_JOB_ID"' in script
