"""The network alone in one process: inference, training, what compiling brings, noise of log-ratios at lag 0."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from gpu_check_parts.measuring import forget, on_gpu, once, peak_gib, seconds_of, wait
from gpu_check_parts.network import (
    batch_of,
    build,
    difference,
    flops_of,
    forward,
    log_probabilities,
    matrix_tflops,
)
from gpu_check_parts.record import Record, Setting
from vla_rl.policies.devices import is_out_of_memory
from vla_rl.policies.openvla_oft.policy import OpenVLAOFTPolicy

INFERENCE_BATCHES = (1, 4, 8, 16)
MICRO_BATCH = 12  # decisions: a segment of the recipes for 80 GB
SERVED = 16  # decisions in a full batch of the inference worker there


def measure(record: Record, setting: Setting) -> None:
    """Measure, the surest first."""
    real = setting.size == "7b"
    rate = matrix_tflops(real=real)
    record.put("matrix_tflops", rate)
    began = time.perf_counter()
    policy = build(setting)
    wait()
    record.put("build_s", time.perf_counter() - began)
    frozen = sum(p.numel() * p.element_size() for p in policy.parameters() if not p.requires_grad)
    trained = sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
    record.put("weights_gib", {"frozen": frozen / 2**30, "trained": trained / 2**30})
    flops = flops_of(policy)
    training = flops.update(train_backbone=False)
    work = Work(policy, rate, forward_tflop=flops.forward / 1e12, training_tflop=training / 1e12)
    record.put("tflop_per_decision", {"forward": work.forward_tflop, "training": work.training_tflop})
    inference: dict[str, Any] = {}
    for batch in INFERENCE_BATCHES if real else (1, 2):
        inference[str(batch)] = work.inference(batch)
        record.put("inference", inference)
    rows = MICRO_BATCH if real else 2
    record.put("training", work.training(rows))
    record.put("noise", noise(policy, rows, SERVED if real else 3))
    record.put("vision_ms", 1e3 * seconds_of(lambda: see(policy, rows)))
    record.put("optimizer_ms", optimizer_ms(policy))
    # As `learner.compile=layers` does; on a CPU without generating code, to try it out.
    policy.model.language_model.compile_layers(backend="inductor" if on_gpu() else "aot_eager")
    record.put("compile_s", once(lambda: work.train(batch_of(policy, rows))))
    record.put("training_compiled", work.training(rows))
    if on_gpu():
        record.put("inference_compiled", work.inference(SERVED if real else 2))


class Work:
    """Forward and backward passes of one policy."""

    def __init__(self, policy: OpenVLAOFTPolicy, rate: float, *, forward_tflop: float, training_tflop: float) -> None:
        self.policy, self.rate = policy, rate
        self.forward_tflop, self.training_tflop = forward_tflop, training_tflop

    def inference(self, batch: int) -> dict[str, Any]:
        """Decisions of one bucket, without gradients."""
        self.policy.eval()
        inputs = batch_of(self.policy, batch)

        def run() -> None:
            with torch.inference_mode():
                forward(self.policy, inputs)

        return self._row(batch, run, self.forward_tflop)

    def training(self, batch: int) -> dict[str, Any]:
        """Forward and backward of one micro-batch."""
        self.policy.train()
        inputs = batch_of(self.policy, batch)
        return self._row(batch, lambda: self.train(inputs), self.training_tflop)

    def train(self, inputs: Any) -> None:  # noqa: ANN401 - PolicyInputs
        """A loss that reaches everything that is trained."""
        output = forward(self.policy, inputs)
        loss = torch.log_softmax(output.logits, dim=-1)[..., 0].mean() + output.values.square().mean()
        loss.backward()
        for parameter in self.policy.parameters():
            parameter.grad = None

    def _row(self, batch: int, action: Callable[[], None], tflop: float) -> dict[str, Any]:
        forget()
        try:
            seconds = seconds_of(action, warm_up=1)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return {"batch": batch, "ms": None, "why": "out of memory"}
        return {
            "batch": batch,
            "ms": 1e3 * seconds,
            "decisions_per_s": batch / seconds,
            "utilisation": batch * tflop / seconds / self.rate,
            "peak_gib": peak_gib(),
        }


def noise(policy: OpenVLAOFTPolicy, rows: int, served: int) -> dict[str, Any]:
    """|log ratio| of the same decisions under the same weights, in the batch of the learner and in others.

    Tokens are drawn from what the learner's batch gives. With exact arithmetic all of it would be 0.
    """
    policy.eval()
    with torch.no_grad():
        learner = log_probabilities(forward(policy, batch_of(policy, rows)), rows)
        tokens = torch.distributions.Categorical(logits=learner).sample()

        def against(inputs: Any, count: int = rows) -> dict[str, float]:  # noqa: ANN401
            other = log_probabilities(forward(policy, inputs), count)
            return difference(learner[:count], other, tokens[:count])

        entropy = -(learner.exp() * learner).sum(dim=-1).mean()
        return {
            "entropy_nat": float(entropy),
            "entropy_share": float(entropy) / math.log(learner.shape[-1]),
            "the same batch again": against(batch_of(policy, rows)),
            "in a full batch of the inference worker": against(batch_of(policy, served)),
            "there, beside prompts of other lengths": against(batch_of(policy, served, mixed=True)),
            "alone": against(batch_of(policy, 1), 1),
        }


def see(policy: OpenVLAOFTPolicy, images: int) -> None:
    """Vision and projector of as many images."""
    size = policy.observation_spec.image_size
    parameter = next(policy.parameters())
    with torch.inference_mode(), torch.autocast(parameter.device.type, dtype=torch.bfloat16, enabled=on_gpu()):
        pixels = torch.zeros(images, 6, size, size, device=parameter.device)
        policy.model.projector(policy.model.vision_features(pixels))


def optimizer_ms(policy: OpenVLAOFTPolicy) -> float:
    """One step of AdamW over what is trained, by a learning rate of 0."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(trained, lr=0.0)
    milliseconds = 1e3 * seconds_of(optimizer.step)
    optimizer.zero_grad()
    return milliseconds
