"""Which GPU the simulators of a rank draw on: the one that the rank computes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from vla_rl.envs.libero.egl_devices import ask_egl_pci_buses, egl_index


def egl_device(device: str, *, ask: Callable[[], Sequence[str | None]] = ask_egl_pci_buses) -> int | None:
    """The EGL number of a rank's GPU, which need not be its CUDA number.

    Args:
        device: of torch, like cuda:1.
        ask: tells the PCI bus of each EGL device.

    Returns:
        None where there is nothing to choose: the rank computes on a CPU, the user has set `MUJOCO_EGL_DEVICE_ID`, or
        EGL knows fewer devices than CUDA and no bus.
    """
    if not device.startswith("cuda") or "MUJOCO_EGL_DEVICE_ID" in os.environ:
        return None
    import torch

    index = torch.device(device).index or 0
    gpu: Any = torch.cuda.get_device_properties(index)
    has_bus = hasattr(gpu, "pci_bus_id")  # not in every torch
    bus = f"{gpu.pci_domain_id:04x}:{gpu.pci_bus_id:02x}:{gpu.pci_device_id:02x}.0" if has_bus else ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    named = visible[index].strip() if index < len(visible) else ""
    buses = ask()
    number = egl_index(bus, cuda_index=int(named) if named.isdigit() else index, egl_buses=buses)
    return number if number < len(buses) else None
