"""The benchmark of the 7B model, on the tiny one."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vla_rl.policies.kind import PolicyContext
from vla_rl.policies.lora_section import LoraSection
from vla_rl.policies.openvla_oft.build import build_openvla_oft
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policies.openvla_oft.section import OpenVLAOFTSection
from vla_rl.policies.parameters import assign_parameters
from vla_rl.types import PolicyInputs

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "bench_openvla"
TASK = "pick up the black bowl between the plate and the ramekin and place it on the plate"


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
    for images in (1, 2):
        policy = of_7b(num_images=images, proprio=images == 2)
        tokens = 1 + 256 * images + (images == 2) + int(policy.prompt_lengths[0]) - 1 + 56 + 1
        llama, vision = script.flops(policy)
        assert llama == pytest.approx(12.95e9 * tokens + 524_288 * tokens**2, rel=1e-3)
        assert vision == pytest.approx(0.405e12 * images, rel=0.01)


GUARD = """
import importlib.metadata, re, sys
from importlib.machinery import PathFinder
from packaging.requirements import Requirement

canonical = lambda name: re.sub(r"[-_.]+", "-", name).lower()
wanted, queue = set(), ["torch", "transformers", "accelerate", "peft", "typer"]
while queue:
    name = canonical(queue.pop())
    if name in wanted:
        continue
    wanted.add(name)
    try:
        requirements = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        continue
    parsed = map(Requirement, requirements)
    queue += [each.name for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})]
modules = importlib.metadata.packages_distributions()
hidden = {module for module, owners in modules.items() if not wanted & set(map(canonical, owners))} - {"vla_rl"}


class Guard(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Guard
print("hidden:", *sorted(hidden & {"simplejpeg", "tensorboard", "mujoco"}), file=sys.stderr)
"""


def run_tiny(tmp_path: Path, *options: str) -> tuple[dict[str, Any], str]:
    """The benchmark in a Python that hides every package but those named in its head, spawned processes included."""
    (tmp_path / "sitecustomize.py").write_text(GUARD, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(SCRIPT), "--size", "tiny", "--device", "cpu", "--repeats", "1", "--json", *options]
    done = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout), done.stderr


@pytest.mark.slow
def test_the_benchmark_measures_everything_on_the_tiny_model_with_nothing_but_what_a_bare_machine_has(
    tmp_path: Path,
) -> None:
    result, errors = run_tiny(tmp_path)
    assert "hidden: mujoco simplejpeg tensorboard" in errors
    measured = {(row["what"], row["images"], row["batch"]): row for row in result["rows"]}
    assert len(measured) == len(result["rows"])
    inference = {("inference", images, batch) for images in (1, 2) for batch in (1, 8, 16, 32)}
    kinds = ("LoRA training", "LoRA training, checkpointing")
    assert set(measured) == inference | {(kind, images, 8) for kind in kinds for images in (1, 2)}
    for (_, images, batch), row in measured.items():
        assert row["seconds"] > 0 and row["formula"]
        assert row["utilisation"] == pytest.approx(
            row["teraflop"] * batch / row["seconds"] / result["matrix_teraflops"], rel=1e-6
        )
        assert row["teraflop"] >= result["forward_teraflop"][str(images)]
    goals = {(what, batch): row["goal"] for (what, _, batch), row in measured.items()}
    assert [goals["inference", batch] for batch in (1, 8, 16, 32)] == [None, None, 0.55, 0.55]
    assert {goals[kind, 8] for kind in kinds} == {0.5}
    for name in ("matrix_teraflops", "weights_gib", "publish_ms", "copy_ms", "adopt_ms", "publish_to_adopt_ms"):
        assert result[name] > 0


def test_a_row_without_memory_says_so_and_the_next_is_measured(script: ModuleType) -> None:
    bench = script.Bench("tiny", torch.device("cpu"), 1, compiled=False)

    def too_large() -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    bench._measure("large", 1, 32, too_large, "all", 1e12, 0.5)
    bench._measure("quick", 1, 1, lambda: None, "all", 1e30, 0.5)
    bench._measure("slow", 1, 1, lambda: None, "all", 1e-30, 0.5)
    bench._measure("without a goal", 1, 1, lambda: None, "all", 1.0, None)
    assert [row.verdict for row in bench.rows] == ["out of memory", "reached", "missed", "-"]


def test_two_images_come_with_proprioception_and_every_pass_has_the_program_s_autocast(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU computes in float32 without autocast, so bfloat16 is asked for."""
    monkeypatch.setattr(script, "INFERENCE_BATCHES", (1,))
    bench = script.Bench("tiny", torch.device("cpu"), 1, compiled=False)
    bench.dtype = torch.bfloat16
    for images in (1, 2):
        policy = bench._build(images, checkpointing=False)
        seen: list[Any] = []
        read_out = policy.model.read_out

        def watch(*arguments: Any, seen: list[Any] = seen, read_out: Any = read_out) -> torch.Tensor:
            seen.append((torch.is_autocast_enabled("cpu"), arguments[3] is not None))
            return read_out(*arguments)  # type: ignore[no-any-return]

        policy.model.read_out = watch
        bench._training(policy, images, 1)
        bench._inference(policy, images)
        assert set(seen) == {(True, images == 2)}


def counted(policy: OpenVLAOFTPolicy, *, train: bool) -> float:
    """FLOPs of one decision as torch counts them, with tensors that have a shape and no memory."""
    policy.train(train)
    # Attention as two plain products: those of the fused kernels are not counted on a CPU.
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH):
        shapes = {name: torch.empty(p.shape, dtype=p.dtype) for name, p in policy.named_parameters()}
        assign_parameters(policy, shapes)
        frames = torch.zeros(1, *policy.observation_spec.frames_shape, dtype=torch.uint8)
        with torch.set_grad_enabled(train), FlopCounterMode(display=False) as counter:
            output = policy.network(PolicyInputs(frames, torch.zeros(1, 8), torch.zeros(1, dtype=torch.int64)))
            if train:
                (output.logits.sum() + output.values.sum()).backward()
    return float(counter.get_total_flops())


def of_7b(*, num_images: int = 1, **choices: Any) -> OpenVLAOFTPolicy:
    fixed = {"name": "openvla_oft", "checkpoint": "random-7b", "profile": "simplevla", "dtype": "bfloat16"}
    trained = {"lora": None, "train_proprio_projector": False, "proprio": False}
    section = OpenVLAOFTSection.model_validate({**fixed, **trained, **choices})
    context = PolicyContext(seed=0, suite="libero_spatial", tasks=(TASK,), num_images=num_images)
    return build_openvla_oft(section, context, device="cpu", empty=True)


@pytest.mark.slow
@pytest.mark.parametrize("images", [1, 2])
def test_a_forward_pass_of_7b_takes_the_flops_of_the_formula(script: ModuleType, images: int) -> None:
    """So nothing is computed twice or for nothing: of lm_head, 256 rows at 56 positions."""
    policy = of_7b(num_images=images, proprio=images == 2)
    assert counted(policy, train=False) == pytest.approx(sum(script.flops(policy)), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_adapters_of_7b_takes_two_or_three_passes_of_llama_and_one_of_vision(
    script: ModuleType, checkpointing: bool
) -> None:
    policy = of_7b(lora=LoraSection(), gradient_checkpointing=checkpointing)
    llama, vision = script.flops(policy)
    tokens = 256 + int(policy.prompt_lengths[0]) + 56 + 1
    adapters = 2 * tokens * 32 * 32 * (4 * 8192 + 3 * 15104)  # one pass through them at rank 32
    passes = 3 if checkpointing else 2
    assert counted(policy, train=True) == pytest.approx(vision + passes * llama + (passes + 1) * adapters, rel=0.01)


@pytest.mark.slow
def test_whole_updates_are_measured_by_parts_and_beside_another_checkout() -> None:
    command = [sys.executable, str(SCRIPT), "--update", "--size", "tiny", "--device", "cpu", "--rounds", "1", "--json"]
    done = subprocess.run(
        [*command, "--against", str(ROOT)], check=True, cwd=ROOT, capture_output=True, text=True, timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    rows = json.loads(done.stdout)["rows"]
    ways = [("current", "batch"), ("current", "running"), ("acting", "batch")]
    assert [(row["checkout"], row["compile"], row["values"], row["moments"]) for row in rows] == [
        ("against", "off", *ways[0]),
        *(("this", compiled, *way) for compiled in ("off", "layers") for way in ways),
    ]
    assert rows[0]["ratio"] == 1.0
    for row in rows:
        assert row["seconds"] == pytest.approx(sum(row["parts"].values()))
        assert all(row["parts"][part] > 0 for part in ("loss", "optimizer", "publish"))
    operations = [row["operations"] for row in rows]
    assert operations[0] == operations[1]  # the same code
    assert operations[3] < operations[2] < operations[1]  # no pass for values; nor for what follows a segment
    assert all(fewer < more for fewer, more in zip(operations[4:], operations[1:4], strict=True))
