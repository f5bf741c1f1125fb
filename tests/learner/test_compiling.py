"""Compiled layers in whole updates, and what is said where torch cannot compile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import learner_fakes as fakes
import pytest
import rank_programs
import torch
from ranks import run_ranks

FOLDER = Path(__file__).parent
DISTANCE = 0.02  # of the way that two updates go; see `test_ranks`. Seen: 4e-4 on one rank


def end(result: dict[str, Any], key: str = "after") -> torch.Tensor:
    return torch.cat([torch.tensor(result[key][name]) for name in sorted(result[key])])


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return rank_programs.openvla_oft(strategy="single", zero_stage=0, precision="fp32")


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "zero_stage"), [("single", 0), ("deepspeed", 2)], ids=["single", "zero2"])
def test_updates_with_compiled_layers_go_where_plain_ones_do(
    tmp_path: Path, plain: dict[str, Any], strategy: str, zero_stage: int
) -> None:
    choices = {"strategy": strategy, "zero_stage": zero_stage, "precision": "fp32", "compile": "layers"}
    if strategy == "single":
        compiled = rank_programs.openvla_oft(**choices)
    else:
        compiled, _ = run_ranks("openvla_oft", tmp_path, num_ranks=2, deadline_s=500.0, **choices)
    assert compiled["compile_seconds"] > 0 and plain["compile_seconds"] == 0
    assert torch.equal(end(compiled, "before"), end(plain, "before"))  # compiling changes nothing
    way = (end(plain) - end(plain, "before")).norm()
    assert way > 0
    assert (end(compiled) - end(plain)).norm() <= DISTANCE * way


def test_what_trains_without_compiling_does_not_import_the_compiler() -> None:
    """It takes as long as torch itself, in every process that reads a recipe, launches ranks or is refused."""
    program = "import sys, vla_rl.train; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_policy_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^learner.compile is 'layers', but this policy has none: set .*=off$"):
        fakes.make_engine(fakes.make_policy(), compile="layers")


def test_without_a_compiler_one_sentence_says_what_to_set(tmp_path: Path) -> None:
    """In a process of its own, with an empty cache: torch looks for compilers once."""
    program = (
        "import rank_programs\n"
        "try:\n"
        "    rank_programs.openvla_oft(strategy='single', zero_stage=0, precision='fp32', compile='layers')\n"
        "except ValueError as error:\n"
        "    print('said:', error)\n"
    )
    environment = os.environ | {
        "CXX": "/nowhere/g++",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": f"{FOLDER}{os.pathsep}{FOLDER.parents[1]}",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
    )
    said = [line for line in done.stdout.splitlines() if line.startswith("said: ")]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("said: learner.compile is 'layers', but torch.compile fails here: ")
    assert "/nowhere/g++" in said[0] and said[0].endswith("or set learner.compile=off")
