"""Model FLOPs utilisation: FLOPs that a run's decisions need, over what its GPU could do in the same time."""

from __future__ import annotations

# Dense bfloat16 TFLOP/s with float32 sums, from NVIDIA's data sheets of the cards; the first name that is part of
# torch's own counts. A card that is not here has no utilisation in the metrics: none is better than an invented one.
_BF16_TFLOPS = (
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),  # SXM: "NVIDIA H100 80GB HBM3"
    ("H200 NVL", 835.0),
    ("H200", 989.0),
    ("A100", 312.0),
    ("L40S", 362.0),
    ("RTX 4090", 165.0),
)


def bf16_peak(device_name: str) -> float | None:
    """FLOP/s of a GPU in bfloat16; None where its data sheet is not known here."""
    return next((1e12 * peak for name, peak in _BF16_TFLOPS if name in device_name), None)


def utilisation(*, decisions: int, flops_each: float, seconds: float, peak: float) -> float:
    """Share of `peak` (FLOP/s) that decisions of `flops_each` took in `seconds`; 0 where no time has passed."""
    return decisions * flops_each / seconds / peak if seconds > 0 else 0.0
