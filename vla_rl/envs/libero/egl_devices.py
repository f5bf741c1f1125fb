"""Choice of the EGL device to render on, and its mapping to GPUs: EGL and CUDA number them independently.

An EGL device that is a GPU reports its file in /dev/dri; the kernel reports the PCI bus of that file's device, and so
does CUDA.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vla_rl.envs.libero.child import Outcome, run_python

_EGL_DRM_DEVICE_FILE = 0x3233  # EGL_EXT_device_drm
_SYSFS = Path("/sys/class/drm")
_ASK_SECONDS = 120.0
_ASK = f"import json; from {__name__} import egl_pci_buses; print(json.dumps(egl_pci_buses()))"


def device_to_draw_on() -> str:
    """Return the value of `MUJOCO_EGL_DEVICE_ID` to use: the user's or the parent process's, else one that works.

    Of several, prefer the first visible CUDA device, else the first. A listed device may not work: a container may hide
    the graphics card, or the user may lack access to its file.

    Loads libEGL: call it in a process of its own, or in one that renders with EGL.

    Raises:
        ImportError: there is no EGL here, as PyOpenGL and mujoco say it.
    """
    if named := os.environ.get("MUJOCO_EGL_DEVICE_ID"):
        return named
    from mujoco.egl import egl_ext

    devices = egl_ext.eglQueryDevicesEXT()
    first_visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    preferred = int(first_visible) if first_visible.isdigit() else 0
    by_preference = sorted(range(len(devices)), key=lambda index: index != preferred)
    return str(next((index for index in by_preference if _can_be_used(devices[index])), 0))


def _can_be_used(device: Any) -> bool:  # noqa: ANN401 - OpenGL's
    """Return whether its display can be initialised, the first step of mujoco and robosuite."""
    from mujoco.egl import egl_ext
    from OpenGL.error import GLError

    try:  # PyOpenGL may raise or, without checks, only record the error
        display = egl_ext.eglGetPlatformDisplayEXT(egl_ext.EGL_PLATFORM_DEVICE_EXT, device, None)
        return (
            display != egl_ext.EGL_NO_DISPLAY
            and bool(egl_ext.eglInitialize(display, None, None))
            and bool(egl_ext.eglGetError() == egl_ext.EGL_SUCCESS)
        )
    except GLError:
        return False


def egl_index(pci_bus: str, *, cuda_index: int, egl_buses: Sequence[str | None]) -> int:
    """Return the value of `MUJOCO_EGL_DEVICE_ID` that renders on a given GPU.

    Args:
        pci_bus: PCI bus of the GPU, like 0000:65:00.0.
        cuda_index: its number without CUDA_VISIBLE_DEVICES; the result if EGL reports no matching bus.
        egl_buses: result of `egl_pci_buses`.
    """
    known = [None if bus is None else bus.lower() for bus in egl_buses]
    return known.index(pci_bus.lower()) if pci_bus.lower() in known else cuda_index


def egl_pci_buses() -> list[str | None]:
    """Return the PCI bus of each EGL device, in EGL's order; None for a software renderer or if unknown.

    Loads libEGL: call it in a process of its own, or in one that renders with EGL.

    Raises:
        ImportError: there is no EGL here, as PyOpenGL and mujoco say it.
    """
    from mujoco.egl import egl_ext
    from OpenGL.EGL.EXT.device_query import eglQueryDeviceStringEXT
    from OpenGL.error import GLError

    buses: list[str | None] = []
    for device in egl_ext.eglQueryDevicesEXT():
        try:
            file = eglQueryDeviceStringEXT(device, _EGL_DRM_DEVICE_FILE)
        except GLError:  # the device lacks the extension
            file = None
        buses.append(pci_bus_of(file.decode()) if file else None)
    return buses


def ask_egl_pci_buses(*, run: Callable[..., Outcome] = run_python) -> list[str | None]:
    """Return `egl_pci_buses` from a process of its own; empty if there is no EGL, or if it does not answer in time."""
    outcome = run(_ASK, seconds=_ASK_SECONDS, variables={"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"})
    buses: list[str | None] = json.loads(outcome.output) if outcome.ok else []
    return buses


def variables_to_draw_on(device: str, *, gl: str) -> dict[str, str]:
    """Return the environment variables that let a rank's simulators draw on the GPU that the rank computes on.

    Args:
        device: torch device, like cuda:1.
        gl: the renderer that was chosen, egl or osmesa.
    """
    index = egl_device(device) if gl == "egl" else None
    return {} if index is None else {"MUJOCO_EGL_DEVICE_ID": str(index)}


def egl_device(device: str, *, ask: Callable[[], Sequence[str | None]] = ask_egl_pci_buses) -> int | None:
    """Return the EGL number of a rank's GPU, which may differ from its CUDA number.

    Args:
        device: torch device, like cuda:1.
        ask: function that returns the PCI bus of each EGL device.

    Returns:
        The number; None if there is nothing to choose: the rank computes on a CPU, the user has set
        `MUJOCO_EGL_DEVICE_ID`, or EGL reports fewer devices than CUDA and no bus.
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


def pci_bus_of(device_file: str, *, sysfs: Path = _SYSFS) -> str | None:
    """Return the kernel's PCI bus of a device file, like 0000:65:00.0 for /dev/dri/card0; None if there is none."""
    link = sysfs / Path(device_file).name / "device"
    return link.resolve().name if link.exists() else None
