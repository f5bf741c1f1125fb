"""`vla-rl export`: what is written, what it is compared with, and that nothing is left half-written."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from vla_rl.cli.main import app
from vla_rl.errors import RunFailureError, UserError
from vla_rl.evaluation.policy_source import find_policy
from vla_rl.export import policy_export as exporting
from vla_rl.export.policy_export import ExportReport, export
from vla_rl.learner.checkpoint import Progress, save
from vla_rl.learner.engine import Engine
from vla_rl.policies.lora import merged_weight
from vla_rl.policies.openvla_oft import OpenVLAOFT
from vla_rl.policies.openvla_oft import adapters as reading
from vla_rl.policies.openvla_oft import checkpoint_writer as layout
from vla_rl.policies.openvla_oft.adapter_config import AdapterConfig, write_adapter_config
from vla_rl.policies.openvla_oft.heads import L1ActionHead
from vla_rl.recipe import build_recipe
from vla_rl.replay.ring import ReplayRing
from vla_rl.replay.ring_file import save_ring
from vla_rl.rl.optimizer_section import OptimizerSection
from vla_rl.run.plan import plan_policy

RECIPE = """
name: small
env: {name: libero, suite: libero_goal, tasks: [3, 5]}
policy: {name: openvla_oft, image_size: 28, lora: {rank: 2, alpha: 4.0}}
surrogate: {name: gipo}
replay: {capacity: 200}
budget: {optimizer_steps: 10}
"""
STEP = 7
HEAD = "action_head--7_checkpoint.pt"


def fill_ring(folder: Path, policy: Any) -> None:
    """One episode of three decisions on the second task; no two observations are the same."""
    ring = ReplayRing.create(
        observation_spec=policy.observation_spec,
        action_spec=policy.action_spec,
        num_envs=1,
        capacity=40,
        max_episode_decisions=8,
        store_logits=False,
    )
    try:
        writer = ring.writer(0)
        writer.begin(1)
        empty: dict[str, Any] = {
            field.name: np.zeros(field.shape[1:], field.dtype) for field in ring.layout.row_fields()
        }
        empty["executed"] = np.array(8, np.int16)
        for index in range(3):
            writer.add(
                **{
                    **empty,
                    "frames": empty["frames"] + 50 * index,
                    "state": empty["state"] + index,
                    "terminated": np.array(index == 2),
                }
            )
        writer.commit(empty["frames"] + 150, empty["state"] + 3)
        save_ring(ring, folder / "ring.safetensors", tasks=["task 0", "task 1"])
    finally:
        ring.close()


def make_run(folder: Path, *overrides: str, with_replay: bool = True) -> Path:
    """A run's folder with one checkpoint, whose adapters, action rows and critic have moved."""
    recipe = build_recipe(RECIPE, overrides)
    policy = plan_policy(recipe.setup).build(device="cpu")
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                generator = torch.Generator().manual_seed(len(name))
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    settings = OptimizerSection(policy_lr=0.0, value_lr=0.0, schedule="constant")
    engine = Engine(policy, strategy="single", zero_stage=2, precision="fp32", device="cpu", optimizer=settings)
    progress = Progress(STEP, 0, 0, 0, 0, 0)
    writers = {"replay": lambda place: fill_ring(place, policy)} if with_replay else {}
    save(folder, engine, progress=progress, extra={}, writers=writers, keep=1)
    (folder / "recipe.yaml").write_text(recipe.dump_yaml(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "small")


@pytest.fixture(scope="module")
def merged(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportReport]:
    out = tmp_path_factory.mktemp("exports") / "merged"
    return out, export(run, out=out)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["export", *arguments])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_s_export_answers_as_its_policy_on_its_own_observations(merged: Any) -> None:
    verification = merged[1].verification
    assert (verification.observations, verification.origin) == (4, "saved")  # three decisions and what came after them
    assert verification.logits_difference <= 1e-4  # float32: merging rounds once more
    assert 0.0 < verification.others_difference["values"] <= 1e-4
    assert verification.logits_deviation > 0.1


def test_an_export_has_the_public_layout_and_the_critic_beside_it(merged: Any) -> None:
    assert names(merged[0]) == {
        "added_tokens.json", "config.json", "dataset_statistics.json", "generation_config.json", "model.safetensors",
        "preprocessor_config.json", "processor_config.json", "special_tokens_map.json", "tokenizer_config.json",
        f"proprio_projector--{STEP}_checkpoint.pt", "tokenizer.json", "value_head.safetensors", "vla_rl.json",
    }  # fmt: skip
    assert OpenVLAOFT.from_pretrained(merged[0]).dtype == torch.float32


def test_export_load_export_gives_identical_files(merged: Any, tmp_path: Path) -> None:
    export(merged[0], out=tmp_path / "again", verify=0)
    first, second = (load_file(folder / "model.safetensors") for folder in (merged[0], tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(
        (merged[0] / "config.json").read_text()
    )


def test_the_profile_of_a_training_is_that_of_its_exports(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "policy.profile=rlinf", with_replay=False)
    export(run, out=tmp_path / "whole", verify=0)
    assert OpenVLAOFT.from_pretrained(tmp_path / "whole").profile.name == "rlinf"
    assert OpenVLAOFT.from_pretrained(tmp_path / "whole", profile="simplevla").profile.name == "simplevla"
    tuned = make_run(tmp_path / "tuned", f"policy.checkpoint={tmp_path / 'whole'}", with_replay=False)
    report = export(tuned, out=tmp_path / "adapter", kind="adapter", verify=2)
    assert report.profile == "rlinf"
    assert report.verification is not None and report.verification.logits_difference <= 1e-4
    assert OpenVLAOFT.from_pretrained(tmp_path / "adapter").profile.name == "rlinf"
    (tmp_path / "adapter" / "vla_rl.json").write_text(json.dumps({"profile": "simplevla"}))
    assert OpenVLAOFT.from_pretrained(tmp_path / "adapter").profile.name == "simplevla"  # before its base's


def test_a_profile_that_is_given_is_recorded(merged: Any, tmp_path: Path) -> None:
    report = export(merged[0], out=tmp_path / "out", profile="rlinf", verify=1)
    assert report.profile == OpenVLAOFT.from_pretrained(tmp_path / "out").profile.name == "rlinf"


def test_an_export_and_its_export_know_what_the_policy_was_trained_on(run: Path, merged: Any, tmp_path: Path) -> None:
    export(merged[0], out=tmp_path / "again", verify=0)
    sources = [find_policy(str(folder), profile="auto") for folder in (run, merged[0], tmp_path / "again")]
    assert {source.trained_on for source in sources} == {"libero_goal (tasks: 3,5), sampled initial states"}
    assert {tuple(source.setup("libero_goal").env.task_ids) for source in sources} == {(3, 5)}


def test_a_checkpoint_directory_keeps_its_dtype_unless_another_is_asked_for(run: Path, tmp_path: Path) -> None:
    export(run, out=tmp_path / "half", dtype="bfloat16", verify=0)
    for name, dtype, expected in (("same", None, torch.bfloat16), ("wide", "float32", torch.float32)):
        report = export(tmp_path / "half", out=tmp_path / name, dtype=dtype, verify=2)
        assert report.verification is not None and report.verification.logits_difference == 0.0
        tensors = load_file(tmp_path / name / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {expected}
        assert OpenVLAOFT.from_pretrained(tmp_path / name).dtype == expected


def test_a_run_without_a_critic_is_exported_without_one(tmp_path: Path) -> None:
    groups = ("targets={name: group, size: 2}", "learner.micro_batch=10", "replay.capacity=300")
    report = export(make_run(tmp_path / "run", *groups), out=tmp_path / "out")
    assert report.verification is not None and report.verification.others_difference == {}
    assert "value_head.safetensors" not in names(tmp_path / "out")


@pytest.mark.parametrize(
    ("dtype", "choice"),
    [(None, "policy.train_proprio_projector=true"), ("float32", "policy.train_proprio_projector=false")],
)
def test_a_backbone_trained_on_weights_in_bfloat16_is_written_and_compared_in_float32(
    merged: Any, tmp_path: Path, dtype: str | None, choice: str
) -> None:
    """All that is trained is float32, whatever the dtype of the rest, so an export must not round any of it."""
    export(merged[0], out=tmp_path / "base", dtype="bfloat16", verify=0)
    whole = ("policy.lora=null", "policy.train_backbone=true", "policy.dtype=bfloat16")
    base = f"policy.checkpoint={tmp_path / 'base'}"
    run = make_run(tmp_path / "run", *whole, base, choice, with_replay=False)
    report = export(run, out=tmp_path / "out", dtype=dtype, verify=2)
    assert report.verification is not None and report.verification.logits_error <= 1e-4
    assert report.verification.tolerance == 1e-3
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def regression(folder: Path, source: Path) -> Path:
    """A copy with the L1 head of another family, and without what weights do not need."""
    shutil.copytree(source, folder)
    for name in ("tokenizer.json", "dataset_statistics.json", "value_head.safetensors", "vla_rl.json"):
        (folder / name).unlink()
    head = L1ActionHead(width=64, chunk_size=8, action_dim=7)
    torch.save({f"module.{name}": value for name, value in head.state_dict().items()}, folder / HEAD)
    return folder


def test_a_checkpoint_with_an_l1_head_goes_through_unchanged(merged: Any, tmp_path: Path) -> None:
    source = regression(tmp_path / "l1", merged[0])
    report = export(source, out=tmp_path / "out", verify=2)
    assert report.profile == "oft_l1"
    assert report.verification is not None and dict(report.verification.others_difference) == {"L1 actions": 0.0}
    assert "L1 actions differ by at most 0" in str(report)
    assert names(tmp_path / "out") == names(source) | {"vla_rl.json"}
    loaded = [OpenVLAOFT.from_pretrained(folder) for folder in (source, tmp_path / "out")]
    assert loaded[1].action_head is not None
    for (name, one), (_, other) in zip(*(model.named_parameters() for model in loaded), strict=True):
        assert torch.equal(one, other), name


def test_an_adapter_alone_is_exported_merged(merged: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", f"policy.checkpoint={merged[0]}", with_replay=False)
    export(run, out=tmp_path / "adapter", kind="adapter", verify=0)
    report = export(tmp_path / "adapter", out=tmp_path / "whole")
    assert report.verification is not None and report.verification.logits_difference == 0.0
    loaded = [OpenVLAOFT.from_pretrained(tmp_path / name) for name in ("adapter", "whole")]
    for (name, one), (_, other) in zip(*(model.named_parameters() for model in loaded), strict=True):
        assert torch.equal(one, other), name
    assert len(load_file(tmp_path / "whole" / "model.safetensors")) == 139
    with pytest.raises(UserError, match=r"there is no adapter\. Leave --adapter out$"):
        export(tmp_path / "adapter", out=tmp_path / "again", kind="adapter")


def test_a_network_that_sees_nothing_is_exported_with_a_warning(merged: Any, tmp_path: Path) -> None:
    blind = tmp_path / "blind"
    shutil.copytree(merged[0], blind)
    tensors = load_file(blind / "model.safetensors")
    tensors["projector.fc3.weight"].zero_()
    save_file(tensors, blind / "model.safetensors")
    assert "warning: the images do not matter" in str(export(blind, out=tmp_path / "out", verify=0))


def test_a_base_without_the_tensors_that_are_not_needed_is_exported_both_ways(merged: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(merged[0], base)
    tensors = load_file(base / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if ".attn_pool." not in k}, base / "model.safetensors")
    run = make_run(tmp_path / "run", f"policy.checkpoint={base}", with_replay=False)
    adapter = export(run, out=tmp_path / "adapter", kind="adapter", verify=1)
    assert not adapter.faults and adapter.verification is not None
    for source, name in ((run, "whole"), (base, "copy")):
        report = str(export(source, out=tmp_path / name, verify=1))
        assert "warning: 13 tensors that the network does not need are missing in its base" in report
        assert load_file(tmp_path / name / "model.safetensors").keys() == tensors.keys()


def test_another_dtype_rounds_the_merged_weights_once(merged: Any, run: Path, tmp_path: Path) -> None:
    report = export(run, out=tmp_path / "half", dtype="bfloat16")
    assert report.verification is not None
    assert 1e-4 < report.verification.logits_difference < 1.0  # 8 bits of mantissa
    full, half = (load_file(folder / "model.safetensors") for folder in (merged[0], tmp_path / "half"))
    assert all(torch.equal(full[name].bfloat16(), half[name]) for name in full)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_an_adapter_on_a_checkpoint_directory_is_what_was_trained(merged: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", f"policy.checkpoint={merged[0]}", with_replay=False)
    report = export(run, out=tmp_path / "adapter", kind="adapter")
    assert report.verification is not None
    assert (report.verification.origin, report.verification.observations) == ("random", 8)
    assert report.verification.logits_difference <= 1e-4
    assert report.verification.others_difference["values"] <= 1e-4
    assert {"adapter_config.json", "adapter_model.safetensors", "value_head.safetensors"} <= names(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 4.0)
    assert config["base_model_name_or_path"] == str(merged[0])
    whole = export(run, out=tmp_path / "whole")
    assert whole.verification is not None
    loaded = [OpenVLAOFT.from_pretrained(tmp_path / kind) for kind in ("adapter", "whole")]
    for (name, one), (_, other) in zip(*(model.named_parameters() for model in loaded), strict=True):
        assert torch.equal(one, other), name


def test_an_adapter_on_a_checkpoint_of_the_hub_names_that_and_not_the_cache(
    merged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "hub" / "models--some--model"
    shutil.copytree(merged[0], cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123", encoding="utf-8")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    run = make_run(tmp_path / "run", "policy.checkpoint=some/model", with_replay=False)
    export(run, out=tmp_path / "adapter", kind="adapter", verify=1)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "some/model"


@torch.no_grad()
def test_peft_loads_an_exported_adapter(merged: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    run = make_run(tmp_path / "run", f"policy.checkpoint={merged[0]}", with_replay=False)
    export(run, out=tmp_path / "adapter", kind="adapter", verify=0)
    ours = OpenVLAOFT.from_pretrained(tmp_path / "adapter")
    base = OpenVLAOFT.from_pretrained(merged[0])
    base.config = {"model_type": "custom"}  # peft asks for a mapping
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).merge_and_unload()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if not name.startswith("proprio_projector"):  # a file of its own, in the public layout
            torch.testing.assert_close(parameter, expected[name], atol=1e-6, rtol=0)


def test_the_verb_prints_the_comparison(run: Path, tmp_path: Path) -> None:
    result = invoke(
        str(run / "checkpoints" / f"optimizer_step_{STEP}"), "--out", str(tmp_path / "out"), "--verify", "2"
    )
    assert result.exit_code == 0
    assert "verified on 2 saved observations: logits differ by at most" in result.stdout
    assert "profile simplevla" in result.stdout


def test_without_verification_nothing_is_compared(run: Path, tmp_path: Path) -> None:
    assert export(run, out=tmp_path / "out", verify=0).verification is None


@pytest.mark.parametrize(
    ("target", "choices", "message"),
    [
        ("tiny", ["--adapter"], "Leave --adapter out"),
        ("nowhere", [], "nowhere does not exist"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(tmp_path: Path, target: str, choices: list[str], message: str) -> None:
    result = invoke(target, "--out", str(tmp_path / "out"), *choices)
    assert result.exit_code == 2
    assert message in result.stderr
    assert names(tmp_path) == set()


def test_a_folder_that_exists_is_refused_before_any_work(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="nothing is written over it"):
        export(run, out=tmp_path)
    assert names(tmp_path) == {"file"}


@pytest.mark.parametrize("place", ["file/out", "/proc/nothing/out", "x" * 300])
def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    result = invoke("tiny", "--out", str(tmp_path / place))
    assert result.exit_code == 2
    assert f"error: {tmp_path / place} cannot be made (" in result.stderr
    assert names(tmp_path) == {"file"}


def test_an_adapter_of_a_random_model_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="made from a seed"):
        export(run, out=tmp_path / "out", kind="adapter")


def test_a_policy_without_a_public_layout_is_refused(tmp_path: Path) -> None:
    toy = tmp_path / "toy"
    recipe = build_recipe("name: t\nenv: {name: toy}\npolicy: {name: mlp}\nsurrogate: {name: gipo}\n"
                          "budget: {optimizer_steps: 1}\n")  # fmt: skip
    engine = Engine(
        plan_policy(recipe.setup).build(device="cpu"),
        strategy="single", zero_stage=2, precision="fp32", device="cpu",
        optimizer=OptimizerSection(policy_lr=0.0, value_lr=0.0, schedule="constant"),
    )  # fmt: skip
    save(toy, engine, progress=Progress(1, 0, 0, 0, 0, 0), extra={}, writers={}, keep=1)
    (toy / "recipe.yaml").write_text(recipe.dump_yaml(), encoding="utf-8")
    with pytest.raises(UserError, match="only 'openvla_oft' has a layout"):
        export(toy, out=tmp_path / "out")


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
def test_an_interrupted_export_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        assert names(tmp_path) == {".tmp-out"}  # it was on its way
        raise failure

    monkeypatch.setattr(exporting, "compare", interrupt)
    with pytest.raises(failure):
        export(run, out=tmp_path / "out")
    assert names(tmp_path) == set()


@pytest.mark.slow
def test_an_export_that_is_asked_to_end_leaves_nothing(tmp_path: Path) -> None:
    """As a batch system or `docker stop` asks, while the weights lie there and are being compared."""
    command = [sys.executable, "-m", "vla_rl", "export", "tiny", "--out", str(tmp_path / "out"), "--verify", "200"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / ".tmp-out" / "model.safetensors").is_file():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, errors) == (130, "interrupted\n")
    assert names(tmp_path) == set()


def test_what_a_killed_export_left_is_replaced(run: Path, tmp_path: Path) -> None:
    left = tmp_path / ".tmp-out"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    export(run, out=tmp_path / "out", verify=0)
    assert names(tmp_path) == {"out"}


def test_an_export_that_answers_differently_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what the adapters add is missing: too much for rounding, in bfloat16 too."""

    def merged_by_half(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, scaling: float) -> torch.Tensor:
        return merged_weight(weight, a, b, scaling=0.5 * scaling)

    monkeypatch.setattr(layout, "merged_weight", merged_by_half)
    for dtype in (None, "bfloat16"):
        with pytest.raises(
            RunFailureError, match=r"outputs differ from the original's.* on 2 saved observations: logits differ"
        ):
            export(run, out=tmp_path / "out", dtype=dtype, verify=2)
        assert names(tmp_path) == set()


def adapter_of(run: Path, folder: Path, *, effect: float) -> Path:
    """The adapter of a run, on its base, with an effect that is a share of what it was."""
    export(run, out=folder, kind="adapter", verify=0)
    tensors = load_file(folder / "adapter_model.safetensors")
    faint = {name: effect * tensor if ".lora_B." in name else tensor for name, tensor in tensors.items()}
    save_file(faint, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_that_is_merged_wrongly_is_caught_by_what_peft_makes_of_it(
    merged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """What is loaded here and what is written would agree: both have the same wrong weights."""
    run = make_run(tmp_path / "run", f"policy.checkpoint={merged[0]}", with_replay=False)
    adapter = adapter_of(run, tmp_path / "adapter", effect=1.0)
    report = export(adapter, out=tmp_path / "right", dtype=dtype, verify=2)
    assert report.verification is not None and report.verification.layers is not None
    assert report.verification.layers.layers == 21  # seven in each of three layers
    assert report.verification.layers.difference < report.verification.layers.effect / 20
    assert "21 adapted layers, each alone, differ by at most" in str(report)

    def merged_by_half(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, scaling: float) -> torch.Tensor:
        return merged_weight(weight, a, b, scaling=0.5 * scaling)

    monkeypatch.setattr(reading, "merged_weight", merged_by_half)
    result = invoke(str(adapter), "--out", str(tmp_path / "out"), "--dtype", dtype, "--verify", "1")
    assert result.exit_code == 1
    assert "so it was removed" in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_adapter_too_faint_for_logits_in_bfloat16_is_caught_layer_by_layer(
    merged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = make_run(tmp_path / "run", f"policy.checkpoint={merged[0]}", with_replay=False)
    adapter = adapter_of(tuned, tmp_path / "adapter", effect=0.06)
    report = export(adapter, out=tmp_path / "right", dtype="bfloat16", verify=2)
    assert report.verification is not None and report.verification.layers is not None
    assert 0.0 < report.verification.layers.effect < 0.05

    def left_out(weight: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return weight

    monkeypatch.setattr(reading, "merged_weight", left_out)
    with pytest.raises(RunFailureError, match=r"the output of language_model\.\S+ alone differs by .* adapter adds"):
        export(adapter, out=tmp_path / "out", dtype="bfloat16", verify=2)
    monkeypatch.setattr(layout, "merged_weight", left_out)
    faint = make_run(tmp_path / "faint", "policy.lora.alpha=0.1", with_replay=False)
    with pytest.raises(RunFailureError, match=r"the output of language_model\.\S+ alone differs by"):
        export(faint, out=tmp_path / "out", dtype="bfloat16", verify=2)


def test_an_adapter_that_is_written_and_read_wrongly_alike_is_caught_by_peft(
    merged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """alpha is written twice as large and read half as large: only another reader can tell."""
    run = make_run(tmp_path / "run", f"policy.checkpoint={merged[0]}", with_replay=False)

    def doubled(settings: Any, directory: Path, *, base: str, whole_modules: list[str] | None) -> None:
        twice = settings.model_copy(update={"alpha": 2.0 * settings.alpha})
        write_adapter_config(twice, directory, base=base, whole_modules=whole_modules)

    monkeypatch.setattr(layout, "write_adapter_config", doubled)
    monkeypatch.setattr(AdapterConfig, "scaling_of", lambda self, _: 0.5 * self.alpha / self.rank)
    with pytest.raises(RunFailureError, match="alone differs by"):
        export(run, out=tmp_path / "out", kind="adapter", verify=2)
    assert names(tmp_path) == {"run"}


def test_what_an_adapter_adapts_of_a_component_is_written_with_the_component(merged: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", f"policy.checkpoint={merged[0]}", with_replay=False)
    export(run, out=tmp_path / "adapter", kind="adapter", verify=0)
    (tmp_path / "adapter" / f"proprio_projector--{STEP}_checkpoint.pt").unlink()  # the base's is adapted then
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    tensors["base_model.model.proprio_projector.fc1.lora_A.weight"] = torch.randn(2, 8)
    tensors["base_model.model.proprio_projector.fc1.lora_B.weight"] = torch.randn(64, 2)
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "target_modules": [*config["target_modules"], "proprio_projector.fc1"]}))
    report = export(tmp_path / "adapter", out=tmp_path / "whole", verify=2)
    assert report.verification is not None and report.verification.logits_difference <= 1e-4
    base, whole = (OpenVLAOFT.from_pretrained(folder) for folder in (merged[0], tmp_path / "whole"))
    name = "proprio_projector.fc1.weight"
    assert (whole.get_parameter(name) - base.get_parameter(name)).abs().max() > 0.1


def test_an_export_that_answers_with_no_number_is_refused(
    merged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(weight: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return torch.full_like(weight, torch.nan)

    run = make_run(tmp_path / "run", f"policy.checkpoint={merged[0]}", with_replay=False)
    monkeypatch.setattr(layout, "merged_weight", broken)
    result = invoke(str(run), "--out", str(tmp_path / "out"), "--verify", "1")
    assert result.exit_code == 1
    assert "root mean square by nan" in result.stderr
    assert names(tmp_path) == {"run"}


def test_weights_that_are_no_numbers_are_exported_only_unseen(merged: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(merged[0], source)
    tensors = load_file(source / "model.safetensors")
    tensors["language_model.model.norm.weight"][0] = torch.nan
    save_file(tensors, source / "model.safetensors")
    result = invoke(str(source), "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "not finite" in result.stderr and "--verify 0" in result.stderr
    assert names(tmp_path) == {"source"}
    assert invoke(str(source), "--out", str(tmp_path / "out"), "--verify", "0").exit_code == 0


def test_an_export_that_finds_no_room_is_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # the weights are larger
    try:
        result = CliRunner().invoke(app, ["export", "tiny", "--out", str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert result.stderr.startswith(f"error: {tmp_path}/out: File too large; ")
