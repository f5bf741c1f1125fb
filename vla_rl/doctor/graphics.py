"""Checks of renderers: one frame each, in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from vla_rl.doctor.accelerators import NVIDIA_DRIVER
from vla_rl.doctor.record import Check, found_and_fix
from vla_rl.envs.libero.gl import BACKENDS, GL, Probe, choose, probe
from vla_rl.errors import SimulatorError

_SOFTWARE = ("llvmpipe", "softpipe", "swrast", "swr")

Choose = Callable[[GL], str]
Look = Callable[[str], Probe]


def check_renderers(*, choose: Choose = choose, probe: Look = probe, has_driver: bool | None = None) -> list[Check]:
    """Check each way to render without a display. One that works is enough."""
    has_driver = NVIDIA_DRIVER.exists() if has_driver is None else has_driver
    found: dict[str, str] = {}
    fixes: dict[str, str] = {}
    names: tuple[GL, ...] = ("egl", "osmesa")
    for backend in names:
        try:
            found[backend] = probe(choose(backend)).renderer or ""
        except SimulatorError as error:
            reason, fixes[backend] = found_and_fix(str(error))
            found[backend] = reason.removeprefix(f"no renderer works, tried {backend}: ")
    if any("No module named 'mujoco'" in reason for reason in found.values()):  # it renders the frame
        return [Check(f"renderer {backend}", "skipped", "mujoco is not installed") for backend in BACKENDS]
    working = [backend for backend in BACKENDS if backend not in fixes]
    return [_judge(backend, found[backend], fixes.get(backend, ""), working, has_driver) for backend in BACKENDS]


def _judge(backend: str, found: str, fix: str, working: list[str], has_driver: bool) -> Check:
    name = f"renderer {backend}"
    if backend not in working:
        if working:
            return Check(name, "skipped", f"{found}; not needed, {working[0]} works")
        return Check(name, "failed", found, "one of egl and osmesa draws a frame", fix)
    slow = backend == "egl" and has_driver and any(word in found for word in _SOFTWARE)
    if slow:
        fix = "install the driver's EGL part (libnvidia-gl; in a container NVIDIA_DRIVER_CAPABILITIES=all)"
        return Check(name, "warning", f"{found}: it renders on the CPU although there is an NVIDIA driver", "", fix)
    return Check(name, "ok", found)


def check_users_choice(*, probe: Look = probe, variables: Mapping[str, str] = os.environ) -> Check:
    """Report `MUJOCO_GL`, which overrides the program's choice where it is set."""
    chosen = variables.get("MUJOCO_GL", "").strip().lower()
    if not chosen:
        return Check("MUJOCO_GL", "ok", "not set: egl if it works, else osmesa")
    seen = probe(chosen)
    if seen.renderer is None:
        return Check("MUJOCO_GL", "failed", f"{chosen}: {seen.reason}", "a renderer that works", "unset MUJOCO_GL")
    return Check("MUJOCO_GL", "ok", f"{chosen}: {seen.renderer}")
