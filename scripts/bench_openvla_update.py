"""One whole update of the learner by parts, for every way to make it: what `scripts/bench_openvla --update` measures.

Each checkout and `learner.compile` has a process of its own, which holds one network. They take turns, so that what
else the machine does meets all alike, and ratios are those of the fastest rounds. The processes import the checkout
that they measure, which may be an older one (`--against`): this file uses what all have.

On a CPU, operations stand for the kernels that a GPU would be given: calls of aten that compute something, and kernels
that the compiler made. On a GPU they are launches.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = (("current", "batch"), ("current", "running"), ("acting", "batch"))  # targets.values, loss.advantage_moments
BATCHES = {"tiny": (3, 2), "mid": (4, 4), "7b": (21, 12)}  # segments, decisions in each
MID = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8}
MID_IMAGE = 112
ANSWER_S = 1800.0  # building, compiling or one update
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
PARTS = ("values", "loss", "optimizer", "publish")


@dataclasses.dataclass
class Row:
    """One way to make an update; seconds of the fastest round."""

    checkout: str  # this, or against
    compile: str
    values: str
    moments: str
    seconds: float  # update and publication
    parts: dict[str, float]  # of that round; `values` holds everything but the other three
    operations: int
    ratio: float  # of seconds to those of the first row


def measure(size: str, device: str, rounds: int, against: Path | None) -> dict[str, Any]:
    """Let the processes take turns; rows in the order of `VARIANTS`, those of `against` first."""
    kinds = [("against", against, "off")] if against is not None else []
    kinds += [("this", ROOT, "off"), ("this", ROOT, "layers")]
    workers = [(name, compiled, Worker(checkout, size, device, compiled)) for name, checkout, compiled in kinds]
    ways = [
        (name, compiled, worker, variant)
        for name, compiled, worker in workers
        for variant in (VARIANTS[:1] if name == "against" else VARIANTS)
    ]
    found: list[list[dict[str, float]]] = [[] for _ in ways]
    try:
        setup = {f"{name}, {compiled}": worker.hear() for name, compiled, worker in workers}
        for turn in range(rounds + 1):
            for (_, _, worker, variant), rows in zip(ways, found, strict=True):
                parts = worker.ask("time", variant)
                if turn:  # the first is a warm-up
                    rows.append(parts)
        operations = [int(worker.ask("count", variant)["operations"]) for _, _, worker, variant in ways]
    finally:
        for _, _, worker in workers:
            worker.end()
    best = [min(rows, key=lambda parts: sum(parts.values())) for rows in found]
    totals = [sum(parts.values()) for parts in best]
    rows = [
        Row(name, compiled, *variant, total, parts, count, total / totals[0])
        for (name, compiled, _, variant), total, parts, count in zip(ways, totals, best, operations, strict=True)
    ]
    segments, decisions = BATCHES[size]
    return {
        "size": size, "device": device, "rounds": rounds, "decisions": segments * decisions, "setup": setup,
        "rows": [dataclasses.asdict(row) for row in rows],
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """The rows for people."""
    lines = [
        f"{result['size']} on {result['device']}: {result['decisions']} decisions, ms, fastest of {result['rounds']}",
        f"{'checkout':<10}{'compile':<9}{'values':<9}{'moments':<9}{'update':>9}"
        + "".join(f"{part:>11}" for part in PARTS)
        + f"{'operations':>12}{'ratio':>8}",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['checkout']:<10}{row['compile']:<9}{row['values']:<9}{row['moments']:<9}{1e3 * row['seconds']:>9.1f}"
            + "".join(f"{1e3 * row['parts'][part]:>11.1f}" for part in PARTS)
            + f"{row['operations']:>12}{row['ratio']:>8.3f}"
        )
    return "\n".join(lines)


class Worker:
    """A process that measures one checkout."""

    def __init__(self, checkout: Path, size: str, device: str, compiled: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        command = [sys.executable, __file__, size, device, compiled]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=checkout, text=True
        )

    def ask(self, what: str, variant: tuple[str, str]) -> dict[str, float]:
        """Have it do something and wait for what it found."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, *variant]) + "\n")
        self._process.stdin.flush()
        return self.hear()

    def hear(self) -> dict[str, float]:
        """Wait for its next answer.

        Raises:
            RuntimeError: it ended, or said nothing for too long.
        """
        assert self._process.stdout is not None
        limit = threading.Timer(ANSWER_S, self._process.kill)
        limit.start()
        try:
            line = self._process.stdout.readline()
        finally:
            limit.cancel()
        if not line:
            raise RuntimeError(f"the process that measures ended, or said nothing for {ANSWER_S:.0f} s")
        answer: dict[str, float] = json.loads(line)
        return answer

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def work(size: str, device: str, compiled: str) -> None:
    """Answer on stdout until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    began = time.perf_counter()
    update = Update(size, device, compiled)
    print(json.dumps({"build_s": time.perf_counter() - began, "compile_s": update.compile_s}), file=answers, flush=True)
    for line in sys.stdin:
        what, values, moments = json.loads(line)
        answer = update.timed(values, moments) if what == "time" else update.counted(values, moments)
        print(json.dumps(answer), file=answers, flush=True)


class Update:
    """One network, with a learner for each variant."""

    def __init__(self, size: str, device: str, compiled: str) -> None:
        import torch

        torch.manual_seed(0)
        if device == "cpu":
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
            if compiled == "layers":
                import torch._inductor.config as inductor

                inductor.cpp.enable_kernel_profile = True  # the profiler then sees the compiler's kernels
        from vla_rl.ipc.mailbox import WeightMailbox
        from vla_rl.learner.engine import Engine

        if device == "cuda":
            try:
                from vla_rl.policies.devices import use_device
            except ImportError:  # an older checkout
                pass
            else:
                use_device("cuda:0")
        self._device = device
        self._policy = build(size, device)
        self._engine = Engine(
            self._policy, strategy="single", zero_stage=2, precision="bf16" if size == "7b" else "fp32", device=device,
            optimizer=_optimizer(policy_lr=1e-6, value_lr=1e-6, schedule="constant"),
            **({"compile": "layers"} if compiled == "layers" else {}),
        )  # fmt: skip
        self.compile_s = getattr(self._engine, "compile_seconds", 0.0)
        self._batch = batch_of(self._policy, *BATCHES[size])
        self._size = size
        self._learners: dict[tuple[str, str], Any] = {}
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._engine.accumulate = self._clocked("loss", self._engine.accumulate)
        self._engine.step = self._clocked("optimizer", self._engine.step)
        named = {name: p.detach() for name, p in self._policy.named_parameters() if p.requires_grad}
        self._mailbox = WeightMailbox.create({name: (tuple(t.shape), t.dtype) for name, t in named.items()})
        if hasattr(self._mailbox, "unlink"):  # an older checkout; now no mailbox keeps its name
            self._mailbox.unlink()
        self._publish = self._clocked("publish", lambda: self._mailbox.publish(self._next_version(), named))

    def timed(self, values: str, moments: str) -> dict[str, float]:
        """Seconds by part."""
        learner = self._learner(values, moments)
        self._wait()
        began = time.perf_counter()
        learner.update(self._batch, policy_version=0, measure=False)
        self._wait()
        total = time.perf_counter() - began
        self._publish()
        seconds = dict(self._seconds)
        seconds["values"] = total - seconds["loss"] - seconds["optimizer"]
        if self._device == "cuda":
            import torch

            torch.cuda.empty_cache()  # another process is next
        return seconds

    def counted(self, values: str, moments: str) -> dict[str, float]:
        """Operations of an update."""
        from torch.profiler import ProfilerActivity, profile

        learner = self._learner(values, moments)
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self._device == "cuda" else [])
        with profile(activities=activities) as found:
            learner.update(self._batch, policy_version=0, measure=False)
            self._wait()
        if self._device == "cuda":
            return {"operations": sum(each.count for each in found.key_averages() if each.key in LAUNCHES)}
        return {"operations": sum(map(computes, found.events()))}

    def _learner(self, values: str, moments: str) -> Any:  # noqa: ANN401 - of whatever checkout
        if (values, moments) not in self._learners:
            self._learners[values, moments] = self._make_learner(values, moments)
        return self._learners[values, moments]

    def _make_learner(self, values: str, moments: str) -> Any:  # noqa: ANN401
        from vla_rl.learner.learner import Learner

        return Learner(
            self._engine,
            old_threshold=1,
            **algorithm(values, moments, num_segments=BATCHES[self._size][0]),
        )

    def _clocked(self, part: str, action: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:  # noqa: ANN401
            self._wait()
            began = time.perf_counter()
            result = action(*arguments)
            self._wait()
            self._seconds[part] = time.perf_counter() - began
            return result

        return run

    def _wait(self) -> None:
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()

    def _next_version(self) -> int:
        return self._mailbox.latest_version() + 1


def _optimizer(**numbers: Any) -> Any:  # noqa: ANN401
    try:
        from vla_rl.rl.optimizer_section import OptimizerSection
    except ImportError:  # an older checkout
        from importlib import import_module

        return import_module("vla_rl.learner.optimizer").OptimizerSettings(**numbers)
    return OptimizerSection(**numbers)


def build(size: str, device: str) -> Any:  # noqa: ANN401
    """The network of a size."""
    from vla_rl.policies.openvla_oft import tiny
    from vla_rl.policies.openvla_oft.config import LlamaDims

    plain = tiny.tiny_config
    if size == "mid":  # the tiny network around a larger Llama; no checkpoint has that name
        llama = LlamaDims(**MID, num_key_value_heads=MID["num_attention_heads"])
        config = dataclasses.replace(plain(image_size=MID_IMAGE), llama=llama)
        tiny.tiny_config = lambda **_options: config
    choices = {
        "checkpoint": "random-7b" if size == "7b" else "tiny",
        "profile": "simplevla",
        "image_size": MID_IMAGE if size == "mid" else None,
        "proprio": False,
        "train_proprio_projector": False,
        "dtype": "bfloat16" if size == "7b" else "float32",
    }
    try:
        return _build(choices, device)
    finally:
        tiny.tiny_config = plain


def _build(choices: dict[str, Any], device: str) -> Any:  # noqa: ANN401
    task = "pick up the black bowl between the plate and the ramekin and place it on the plate"
    try:
        from vla_rl.policies.kind import PolicyContext
    except ImportError:  # an older checkout
        return _build_from_arguments(choices, task, device)
    from vla_rl.policies.openvla_oft.build import build_openvla_oft
    from vla_rl.policies.openvla_oft.section import OpenVLAOFTSection

    section = OpenVLAOFTSection.model_validate({"name": "openvla_oft", **choices})
    context = PolicyContext(seed=0, suite="libero_spatial", tasks=(task,), num_images=1)
    return build_openvla_oft(section, context, device=device)


def _build_from_arguments(choices: dict[str, Any], task: str, device: str) -> Any:  # noqa: ANN401
    """As `_build`, in a checkout whose builder takes everything one by one."""
    from importlib import import_module

    settings = import_module("vla_rl.policies.lora").LoraSettings()
    return import_module("vla_rl.policies.build").build_openvla_oft(
        **choices, tasks=(task,), statistics_key="libero_spatial", num_images=1, lora=settings, train_action_rows=True,
        value_head="attention_pool", detach_value=True, gradient_checkpointing=False, seed=0, device=device,
    )  # fmt: skip


def batch_of(policy: Any, segments: int, decisions: int) -> Any:  # noqa: ANN401
    """Segments of random experience; the task ends in every third, the others bootstrap from what follows them."""
    import numpy as np

    from vla_rl.types import SegmentBatch

    rng = np.random.default_rng(0)
    shape, tokens = (segments, decisions), policy.action_spec.num_tokens
    bins = policy.action_spec.num_bins
    terminated = np.zeros(shape, dtype=np.bool_)
    terminated[::3, -1] = True
    behavior_values = rng.normal(size=(segments, decisions + 1)).astype(np.float32)
    behavior_values[::3, -1] = np.nan
    given: dict[str, Any] = {
        "frames": rng.integers(
            0, 256, (segments, decisions + 1, *policy.observation_spec.frames_shape), dtype=np.uint8
        ),
        "state": np.zeros((segments, decisions + 1, policy.observation_spec.state_dim), dtype=np.float32),
        "task_index": np.zeros(segments, dtype=np.int64),
        "episode": np.arange(segments),
        "group": np.zeros(segments, dtype=np.int64),
        "tokens": rng.integers(0, bins, (*shape, tokens)).astype(np.int16),
        "behavior_logprobs": np.full((*shape, tokens), -np.log(bins), dtype=np.float32),
        "behavior_logits": None,
        "behavior_values": behavior_values,
        "rewards": rng.normal(size=shape).astype(np.float32),
        "executed": np.full(shape, policy.action_spec.chunk_size, dtype=np.int16),
        "terminated": terminated,
        "truncated": np.zeros(shape, dtype=np.bool_),
        "policy_version": np.zeros(shape, dtype=np.int64),
        "age": np.zeros(shape, dtype=np.int64),
        "mask": np.ones(shape, dtype=np.bool_),
    }
    return SegmentBatch(**{name: given[name] for name in SegmentBatch.__dataclass_fields__})  # fewer in older commits


def algorithm(values: str, moments: str, *, num_segments: int) -> dict[str, Any]:
    """GIPO with GAE, a segment per micro-batch, as a checkout's learner takes them."""
    try:
        from vla_rl.credit import Gae
        from vla_rl.rl.loss_weights import LossWeights
        from vla_rl.rl.surrogates import Gipo
    except ImportError:  # an older checkout
        return older_algorithm(num_segments)
    return {
        "credit": Gae(name="gae", time_limit="end", values=values),
        "surrogate": Gipo(name="gipo", sigma=0.5),
        "loss": LossWeights(advantage_moments=moments),
        "batch_size": num_segments,
        "num_micro_batches": num_segments,
    }


def older_algorithm(num_segments: int) -> dict[str, Any]:
    """The same for commits up to 2cc93c5, which have one way to make an update."""
    import functools
    import importlib

    settings = importlib.import_module("vla_rl.learner.settings")
    surrogates = importlib.import_module("vla_rl.rl.surrogates")
    multipliers = importlib.import_module("vla_rl.rl.multipliers")
    return {
        "targets": settings.GaeSettings(discount=0.99, gae_lambda=0.95),
        "surrogate": functools.partial(surrogates.gipo, sigma=0.5),
        "multiplier": functools.partial(multipliers.gipo, sigma=0.5),
        "loss": settings.LossSettings(),
        "temperature": 1.0,
        "micro_batch": 1,
        "accumulation": num_segments,
    }


VIEWS = frozenset(
    f"aten::{name}"
    for name in (
        "view", "_unsafe_view", "reshape", "_reshape_alias", "t", "transpose", "permute", "expand", "slice", "select",
        "split", "split_with_sizes", "chunk", "unbind", "unsqueeze", "squeeze", "detach", "alias", "as_strided",
        "empty", "empty_like", "empty_strided", "result_type", "lift_fresh", "to", "numpy_T", "narrow", "item",
        "_local_scalar_dense", "resolve_conj", "resolve_neg", "is_nonzero", "resize_",
    )
)  # fmt: skip


def computes(event: Any) -> bool:  # noqa: ANN401 - torch.autograd.profiler_util.FunctionEvent
    """Whether an event of a CPU's profile is an operation that a GPU would have a kernel for."""
    if "_fused_" in event.name and not event.name.startswith("aten::"):
        return True
    inside = any(child.name.startswith("aten::") and child.name not in VIEWS for child in event.cpu_children)
    return event.name.startswith("aten::") and event.name not in VIEWS and not inside


if __name__ == "__main__":
    work(*sys.argv[1:])
