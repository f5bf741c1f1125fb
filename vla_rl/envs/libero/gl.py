"""Choice of the off-screen renderer, made before anything that would fix it is imported."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from vla_rl.envs.libero.child import run_python
from vla_rl.errors import SimulatorError

GL = Literal["auto", "egl", "osmesa"]

_PROBE_SECONDS = 120.0
_PROBE = """
import os
if os.environ["MUJOCO_GL"] == "egl":
    from vla_rl.envs.libero.egl_devices import device_to_draw_on
    os.environ["MUJOCO_EGL_DEVICE_ID"] = device_to_draw_on()
import mujoco
model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom size=".1"/></worldbody></mujoco>')
with mujoco.Renderer(model, 8, 8) as renderer:
    renderer.update_scene(mujoco.MjData(model))
    renderer.render()
    from OpenGL import GL
    print(GL.glGetString(GL.GL_RENDERER).decode())
"""


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to render without a display."""

    library: str
    packages: str  # Debian and Ubuntu


BACKENDS = {
    "egl": Backend(library="libEGL.so.1", packages="libegl1 libgl1 libgl1-mesa-dri"),
    "osmesa": Backend(library="libOSMesa.so.8", packages="libosmesa6"),
}


@dataclass(frozen=True, slots=True)
class Probe:
    """Result of rendering one frame."""

    renderer: str | None  # what OpenGL calls itself, for example "llvmpipe (...)"; None if nothing was rendered
    reason: str  # last line of the failure


@cache
def probe(backend: str) -> Probe:
    """Render one frame in a process of its own, on the device that this one would use; the result is cached.

    Takes about a second.
    """
    variables = {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    outcome = run_python(_PROBE, seconds=_PROBE_SECONDS, variables=variables)
    if outcome.ok:
        return Probe(renderer=outcome.output, reason="")
    return Probe(renderer=None, reason=outcome.reason)


def choose(gl: GL) -> str:
    """Choose the renderer: `egl` or `osmesa`; with auto the one in `MUJOCO_GL`, if the user set it.

    A renderer that the user named is not tried here; `renderer_of` tries it.

    Raises:
        SimulatorError: no renderer works; the message names the missing library and the packages that hold it.
    """
    if gl not in ("auto", *BACKENDS):
        raise SimulatorError(f"gl must be one of auto, {', '.join(BACKENDS)}, got {gl!r}")
    users = os.environ.get("MUJOCO_GL", "").strip().lower()
    if gl == "auto" and users:
        if users not in BACKENDS:
            raise SimulatorError(
                f"MUJOCO_GL={users} draws nothing without a display. Fix: unset it, or set egl or osmesa"
            )
        return users
    candidates: list[str] = list(BACKENDS) if gl == "auto" else [gl]
    for backend in candidates:
        if probe(backend).renderer is not None:
            return backend
    raise SimulatorError(nothing_renders(candidates))


def renderer_of(backend: str) -> str:
    """Return OpenGL's own name of the renderer, for example "llvmpipe (LLVM 15.0.6, 256 bits)".

    Raises:
        SimulatorError: it renders nothing; gives the reason and the fix.
    """
    renderer = probe(backend).renderer
    if renderer is None:
        raise SimulatorError(nothing_renders([backend]))
    return renderer


def nothing_renders(candidates: Sequence[str]) -> str:
    """Explain why none of these renderers works, and what to do: install a library only if one is missing."""
    tried = "; ".join(f"{name}: {_why(name)}" for name in candidates)
    absent = [name for name in candidates if not _has_library(name)]
    fixes = [f"apt-get install -y {BACKENDS[name].packages}" for name in absent]
    if os.environ.get("MUJOCO_GL"):
        fixes.append("unset MUJOCO_GL, so that another renderer is tried")
    if os.environ.get("MUJOCO_EGL_DEVICE_ID"):
        fixes.append("unset MUJOCO_EGL_DEVICE_ID, so that another device is tried")
    advice = " or ".join(fixes) or "repair the graphics driver that the library loads; vla-rl doctor tries it again"
    return f"no renderer works, tried {tried}. Fix: {advice}"


def _why(backend: str) -> str:
    """Name the missing library if that is the reason: OpenGL's own message would not say so."""
    library = BACKENDS[backend].library
    return (
        f"{library} is there, but {probe(backend).reason}" if _has_library(backend) else f"{library} is not installed"
    )


def _has_library(backend: str) -> bool:
    try:
        ctypes.CDLL(BACKENDS[backend].library)
    except OSError:
        return False
    return True
