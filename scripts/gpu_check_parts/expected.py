"""What an H100 of 80 GB should show. CALCULATED from counted FLOPs, launches and bytes; not measured on any card.

The figures are for the 7B network, one image, 342 tokens a decision, bfloat16, and a matrix rate of 790 TFLOP/s. They
are of the plain program, without any compilation and with a pass of its own for values. docs/gpu.md has the same ones.
"""

from __future__ import annotations

EXPECTED = {
    "machine.large and square": "650 to 800 TFLOP/s",
    "machine.host to device, pageable": "5 to 12 GB/s",
    "machine.host to device, pinned": "25 to 55 GB/s",
    "machine.within the device": "1,200 GB/s and more",
    "ipc.lost": "0",
    "model.inference 1": "30 to 60 ms: launches, not arithmetic",
    "model.inference 16": "199 ms, 80 decisions/s at 50 %; goal 55 %",
    "model.training": "322 ms for 12, 44 %; goal 50 %",
    "model.training compiled": "241 ms, 59 %",
    "model.vision": "14 ms an image alone, less in a batch",
    "model.noise": "p95 0.06, joint mean 0.1 to 0.16, for well-conditioned weights",
    "cell.update": "11.0 s for 252 decisions; goal 5.7 s",
    "cell.consumed": "23 decisions/s",
    "cell.collected": "5.7 decisions/s, at a replay ratio of 4",
    "cell.publish": "10 to 20 ms",
    "cell.lag0": "like the noise of the model",
    "cell.lost": "0",
    "toy.success": "0.9 and more",
    "graphs.skips": "0",
}
