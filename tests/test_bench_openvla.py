"""The benchmark of the 7B model, on the tiny one."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from vla_rl.policies.build import build_openvla_oft

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "bench_openvla"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("bench_openvla", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # dataclasses look their module up
    loader.exec_module(module)
    return module


def test_the_flops_are_those_of_the_literature(script: ModuleType) -> None:
    """12.95 GFLOP per token and 524,288 T^2 for Llama, 0.405 TFLOP per image for vision and projector."""
    build = partial(
        build_openvla_oft,
        checkpoint="random-7b", profile="simplevla", tasks=(script.TASK,), statistics_key="libero_spatial",
        image_size=None, proprio=False, lora=None, train_action_rows=False, train_proprio_projector=False,
        value_head="attention_pool", detach_value=True, dtype="bfloat16", gradient_checkpointing=False, seed=0,
        device="cpu", empty=True,
    )  # fmt: skip
    for images in (1, 2):
        policy = build(num_images=images)
        tokens = 1 + 256 * images + int(policy.prompt_lengths[0]) - 1 + 56 + 1
        llama, vision = script.flops(policy)
        assert llama == pytest.approx(12.95e9 * tokens + 524_288 * tokens**2, rel=1e-3)
        assert vision == pytest.approx(0.405e12 * images, rel=0.01)


def test_the_benchmark_imports_nothing_that_only_the_rest_of_the_program_needs() -> None:
    code = (
        "import sys, runpy\n"
        "for name in ('pydantic', 'simplejpeg', 'typer', 'mujoco'): sys.modules[name] = None\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='bench')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.slow
def test_the_benchmark_measures_everything_on_the_tiny_model() -> None:
    command = [sys.executable, str(SCRIPT), "--size", "tiny", "--device", "cpu", "--repeats", "1", "--json"]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    result = json.loads(done.stdout)
    measured = [(row["what"], row["images"], row["batch"]) for row in result["rows"]]
    inference = [("inference", images, batch) for images in (1, 2) for batch in (1, 8, 16, 32)]
    training = [("LoRA training", 1, 8), ("LoRA training, checkpointing", 1, 8)]
    assert sorted(measured) == sorted(inference + training)
    assert all(row["seconds"] > 0 and row["utilisation"] > 0 for row in result["rows"])
    assert all(result[name] > 0 for name in ("matrix_teraflops", "weights_gib", "publish_ms", "adopt_ms"))
