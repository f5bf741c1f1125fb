"""The phases, in the order of their worth: the time may end before the last one. Standard library alone.

Limits are for a 7B model on an H100 with some room; together they are more than the time there is, because few phases
need theirs.
"""

from __future__ import annotations

from gpu_check_parts.runner import Phase

SECTIONS = ("pydantic", "pydantic_core")  # a policy, a surrogate and a credit are sections of a recipe
MODEL = ("torch", "numpy", "transformers", "tokenizers", "safetensors", "peft", *SECTIONS)
RECIPE = (
    "yaml",
    "packaging",
    "psutil",
    "rich",
    "typer",
    "accelerate",
    "simplejpeg",
    "PIL",
)

START = Phase(
    "start", "import torch, find the GPU", "gpu_check_parts.measure_start", limit_s=90, needs=("torch", "numpy")
)
PHASES = (
    Phase("machine", "matrix rate, copies, attention", "gpu_check_parts.measure_machine", limit_s=60, needs=("torch",)),
    Phase(
        "ipc",
        "memory shared with another process, and given back",
        "gpu_check_parts.measure_ipc",
        limit_s=75,
        needs=("torch", "numpy", "psutil"),
    ),
    Phase(
        "egl",
        "a frame drawn by MuJoCo",
        "gpu_check_parts.measure_egl",
        limit_s=30,
        needs=("numpy", "mujoco", "OpenGL"),
    ),
    Phase(
        "model",
        "the network alone: inference, training, noise at lag 0",
        "gpu_check_parts.measure_model",
        limit_s=120,
        needs=MODEL,
    ),
    Phase(
        "cell",
        "learner, inference worker and env workers together",
        "gpu_check_parts.measure_cell",
        limit_s=140,
        needs=(*MODEL, *RECIPE),
    ),
    Phase(
        "toy",
        "vla-rl train toy: is it solved?",
        "gpu_check_parts.measure_toy",
        limit_s=75,
        needs=("torch", "numpy", "safetensors", *SECTIONS, *RECIPE),
    ),
    Phase(
        "tests",
        "pytest -m gpu",
        "gpu_check_parts.measure_tests",
        limit_s=90,
        needs=("pytest", *MODEL),
        needs_gpu=True,
    ),
    Phase(
        "graphs",
        "rollout.compile: CUDA graphs, and what they skip",
        "gpu_check_parts.measure_graphs",
        limit_s=150,
        needs=MODEL,
    ),
)
NAMES = tuple(phase.name for phase in PHASES)
