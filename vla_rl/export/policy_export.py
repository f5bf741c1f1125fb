"""Export of a run's checkpoint to a folder that other programs load, compared with the original policy."""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from vla_rl.errors import preflight
from vla_rl.evaluation.history import history_of, record_history
from vla_rl.evaluation.policy_source import PolicySource, find_policy
from vla_rl.evaluation.provenance import record_statistics, record_training
from vla_rl.export.layers import AdaptedAnswer, adapted_answers, compare_layers, plain_answers
from vla_rl.export.verification import (
    Answers,
    Verification,
    compare,
    network_answers,
    observations,
    policy_answers,
    refuse_infinite,
)
from vla_rl.policies.devices import use_device
from vla_rl.policies.openvla_oft.checkpoint_files import CheckpointFiles, find_files
from vla_rl.policies.openvla_oft.checkpoint_metadata import appears_whole
from vla_rl.policies.openvla_oft.checkpoint_reader import DTYPES
from vla_rl.policies.openvla_oft.checkpoint_writer import write_adapter, write_checkpoint, write_network
from vla_rl.policies.openvla_oft.config import TINY
from vla_rl.policies.openvla_oft.dataset_statistics import SUFFIX
from vla_rl.policies.openvla_oft.model import OFTNetwork
from vla_rl.policies.openvla_oft.peft_reference import adapted_by_peft
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy
from vla_rl.policies.openvla_oft.section import exportable
from vla_rl.policies.openvla_oft.self_test import network_faults
from vla_rl.policies.openvla_oft.source import Source, find_checkpoint, find_source
from vla_rl.policies.parameters import cast_parameters
from vla_rl.run.plan import plan_policy, resolve_device
from vla_rl.run.signals import heed_signals, interrupted_by_signals
from vla_rl.run.trained_network import load_trained

Kind = Literal["merged", "adapter"]
_STEP = re.compile(r"optimizer_step_(\d+)")


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Report of a written export."""

    folder: Path
    kind: Kind
    checkpoint: str
    profile: str  # comparison, recorded in the folder
    faults: Sequence[str]  # findings of the network's self-test and missing tensors, in sentences
    verification: Verification | None

    def __str__(self) -> str:
        lines = [f"{self.kind} export of {self.checkpoint}", *(f"warning: {fault}" for fault in self.faults)]
        lines += [] if self.verification is None else [str(self.verification)]
        return "\n".join([*lines, f"profile {self.profile}", f"written: {self.folder}"])


def export(
    target: Path | str,
    *,
    out: Path,
    kind: Kind = "merged",
    dtype: str | None = None,
    verify: int = 8,
    profile: str = "auto",
) -> ExportReport:
    """Export a policy. The folder appears complete and verified, or not at all; SIGTERM and SIGHUP count as Ctrl-C.

    Args:
        target: a run, one of its checkpoints, or anything else that `evaluation.policy_source.find_policy` knows: a
            checkpoint directory, also one with an L1 head, is copied; an adapter alone is merged into its base.
        out: must not exist.
        kind: `merged`, a checkpoint in the public layout; `adapter`, a LoRA adapter in peft's.
        dtype: dtype of the written shards, `float32` or `bfloat16`; default: that of a run's frozen weights, float32
            where the run trained the backbone, or the stored one of a checkpoint directory (of an adapter's factors:
            float32).
        verify: observations on which the outputs before and after are compared; 0 for none.
        profile: family of a target that is a checkpoint directory.

    Raises:
        UserError: the target, `out` or the choices do not fit; nothing was written.
        OSError: it could not be written; nothing is left behind.
    """
    chosen = None if dtype is None else DTYPES[dtype]
    with preflight(), interrupted_by_signals(), appears_whole(out) as folder:
        heed_signals()
        origin = find_policy(str(target), profile=profile)
        if origin.checkpoint is not None:
            report = _export_trained(origin, origin.checkpoint, out, folder, kind=kind, dtype=chosen, verify=verify)
        elif kind == "adapter":
            raise ValueError(f"{origin.location} was not trained here, so there is no adapter. Leave --adapter out")
        else:
            report = _export_network(origin, out, folder, profile=profile, dtype=chosen, verify=verify)
        if origin.training is not None:
            record_training(folder, origin.training)
        record_history(folder, history_of(origin), exported_from=origin.fingerprint)
        if (key := _statistics_to_record(origin)) is not None:
            record_statistics(folder, key)
    return report


def _export_trained(
    origin: PolicySource,
    checkpoint: Path,
    out: Path,
    folder: Path,
    *,
    kind: Kind,
    dtype: torch.dtype | None,
    verify: int,
) -> ExportReport:
    """Export a policy with the tensors that a run has trained."""
    setup = origin.run
    assert setup is not None, "a run made it"
    section = exportable(setup.policy, location=origin.location)
    device = use_device(resolve_device(setup.runtime.device))
    plan = plan_policy(setup)
    policy: OpenVLAOFTPolicy = plan.build(device=str(device))
    load_trained(checkpoint, policy, plan)
    policy.eval()
    resolved, faults = policy.source.profile.name, network_faults(policy.model)
    shown = observations(checkpoint, policy, verify) if verify else None
    before = None if shown is None else policy_answers(policy, shown)
    layers = {} if shown is None else adapted_answers(policy.model)
    refuse_infinite(before, origin.location)
    coarsest = policy.model.dtype if dtype is None else min(policy.model.dtype, dtype, key=lambda one: one.itemsize)
    if kind == "merged":
        faults += _completed(write_checkpoint(policy, folder, step=_step(checkpoint), dtype=dtype))
    else:
        write_adapter(policy, folder, step=_step(checkpoint), dtype=dtype)
    source = policy.source
    network_dtype = policy.model.dtype
    del policy  # two copies of 7B weights would not fit
    gc.collect()
    verification = None
    if before is not None and shown is not None:
        changes: dict[str, Any] = {"checkpoint": str(folder), "profile": "auto", "image_size": None, "lora": None}
        if section.train_backbone:  # written in float32, so that reading it in the frozen weights' dtype would round it
            changes["dtype"] = "float32"
        written_section = section.model_copy(update={**changes, "train_action_rows": False})
        again = plan_policy(setup.model_copy(update={"policy": written_section})).build(device=str(device)).eval()
        if again.model.proprio_projector is not None and not section.train_proprio_projector:
            cast_parameters(again.model.proprio_projector, DTYPES[section.dtype])  # it computes in its own dtype
        verification = compare(before, policy_answers(again, shown), origin=shown.origin, dtype=coarsest)
        written = plain_answers(again.model, layers)
        verification = replace(verification, layers=compare_layers(layers, written, dtype=coarsest))
        del again
        gc.collect()
        if kind == "adapter":
            model = _network(source, device, dtype=network_dtype)
            with adapted_by_peft(model, folder):
                pass  # merged while writing
            compare_layers(layers, plain_answers(model, layers), dtype=coarsest)
    return ExportReport(out, kind, origin.location, resolved, faults, verification)


def _export_network(
    origin: PolicySource, out: Path, folder: Path, *, profile: str, dtype: torch.dtype | None, verify: int
) -> ExportReport:
    """Export a network as stored: neither statistics nor prompts are needed."""
    policy = exportable(origin.policy, location=origin.location)
    device = use_device(resolve_device("auto"))
    if policy.checkpoint == TINY:
        source = find_source(TINY, profile=profile, image_size=None, proprio=policy.proprio)
    else:
        source = find_checkpoint(Path(policy.checkpoint), profile=profile)
    # A requested float32 also applies to the merging of an adapter, which would otherwise be rounded first.
    model = _network(source, device, dtype=torch.float32 if dtype == torch.float32 else source.stored_dtype)
    faults = network_faults(model)
    before = network_answers(model, verify) if verify else None
    refuse_infinite(before, origin.location)
    faults += _completed(write_network(model, source, folder, dtype=dtype))
    compute_dtype = model.dtype
    del model
    gc.collect()
    verification = None
    if before is not None:
        layers: dict[str, AdaptedAnswer] = {}
        if source.files is not None and source.files.adapter is not None:
            before, layers = _merged_by_peft(source, source.files, device, dtype=compute_dtype, verify=verify)
            gc.collect()
        written = find_checkpoint(folder, profile="auto")
        again = _network(written, device, dtype=written.stored_dtype)
        verification = compare(before, network_answers(again, verify), origin="random", dtype=written.stored_dtype)
        layers_after = plain_answers(again, layers)
        verification = replace(verification, layers=compare_layers(layers, layers_after, dtype=written.stored_dtype))
    return ExportReport(out, "merged", origin.location, source.profile.name, faults, verification)


def _merged_by_peft(
    source: Source, files: CheckpointFiles, device: torch.device, *, dtype: torch.dtype, verify: int
) -> tuple[Answers, dict[str, AdaptedAnswer]]:
    """Return the outputs of the base with an adapter that peft loaded and merged, not this program."""
    assert files.adapter is not None
    model = _network(replace(source, files=replace(files, adapter=None)), device, dtype=dtype)
    with adapted_by_peft(model, files.adapter):
        layers = adapted_answers(model)
    return network_answers(model, verify), layers


def _network(source: Source, device: torch.device, *, dtype: torch.dtype) -> OFTNetwork:
    model = source.empty_network(OFTNetwork, dtype=dtype)
    source.fill(model, seed=0, device=device)
    return model.eval()


def _completed(lacking: Sequence[str]) -> list[str]:
    """Return a sentence about tensors that were missing."""
    if not lacking:
        return []
    return [
        f"{len(lacking)} tensors that the network does not need are missing in its base ({lacking[0]}, ...): they were "
        "written as zeros, because other programs ask for them"
    ]


def _step(checkpoint: Path) -> int:
    match = _STEP.fullmatch(checkpoint.name)
    return int(match[1]) if match else 0


def _statistics_to_record(origin: PolicySource) -> str | None:
    """Return the key of the data set that scales the actions, if it differs from the suite's name."""
    policy, training = exportable(origin.policy, location=origin.location), origin.training
    if origin.checkpoint is None and policy.checkpoint == TINY:
        return None
    if origin.checkpoint is None:
        return policy.statistics or find_files(Path(policy.checkpoint)).statistics
    if training is None:
        return None
    key = plan_policy(origin.setup(training.suite)).statistics
    return None if key in (training.suite, training.suite + SUFFIX) else key
