"""Model FLOPs utilisation: FLOPs that a run's decisions need, divided by what its GPU could do in the same time."""

from __future__ import annotations

from vla_rl.reporting.text import number, percent

# Dense bfloat16 TFLOP/s with float32 sums, from NVIDIA's data sheets (half of what they say "with sparsity"); the first
# name contained in torch's name of the card is used. Other cards have no utilisation in the metrics, which is better
# than an invented one.
#   H100: 1,979 (SXM), 1,671 (NVL), 1,513 (PCIe): nvidia.com/en-us/data-center/h100
#   H200: 1,979 (SXM), 1,671 (NVL): nvidia.com/en-us/data-center/h200
#   A100: 312 without sparsity: nvidia.com/en-us/data-center/a100
#   L40S: 362 without sparsity: nvidia.com/en-us/data-center/l40s
#   RTX 4090: 165.2 without sparsity, with float32 sums: NVIDIA's Ada GPU architecture whitepaper, appendix A
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
ASSUMED_UTILISATION = 0.4  # of the peak, where nothing was measured: usual in training of large models
_OTHER_CARDS = (" MIG ", "4090 D", "Laptop")  # parts of cards, and smaller ones whose name goes on


def bf16_peak(device_name: str) -> float | None:
    """Return the bfloat16 FLOP/s of a GPU; None if its data sheet is not known here."""
    if any(part in device_name for part in _OTHER_CARDS):
        return None
    return next((1e12 * peak for name, peak in _BF16_TFLOPS if name in device_name), None)


def hours_on_cards(flops: float, *, num_cards: int) -> str:
    """Return in words how long that much arithmetic would take on cards of 24 and of 80 GB, by an assumed utilisation.

    Args:
        flops: FLOPs in all.
        num_cards: cards that share them.
    """
    told = []
    for name in ("RTX 4090", "H100"):
        peak = bf16_peak(name)
        assert peak is not None
        rate = ASSUMED_UTILISATION * peak
        told.append(
            f"{number(flops / (num_cards * rate) / 3600)} h on {num_cards} x {name} ({rate / 1e12:.0f} TFLOP/s each)"
        )
    return f"{', '.join(told)}; assumed, not measured: {percent(ASSUMED_UTILISATION)} of the bfloat16 peak"


def utilisation(*, decisions: int, flops_each: float, seconds: float, peak: float) -> float:
    """Return the share of `peak` (FLOP/s) that decisions of `flops_each` took in `seconds`; 0 if no time has passed."""
    return decisions * flops_each / seconds / peak if seconds > 0 else 0.0
