"""Check that LIBERO can run here, before any worker is started and without importing it in this process."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from importlib import metadata

from vla_rl.envs.libero import gl as renderers
from vla_rl.envs.libero import shim
from vla_rl.envs.libero.assets import Assets, resolve_assets
from vla_rl.envs.libero.child import run_python
from vla_rl.envs.libero.suites import INSTALL_HINT
from vla_rl.errors import SimulatorError

_IMPORT = "import sys; from vla_rl.envs.libero import shim; shim.load(gl=sys.argv[1])"
IMPORT_SECONDS = 300.0  # from a slow disk; numba compiles in the first episode


@dataclass(frozen=True, slots=True)
class SimulatorReport:
    """Software that episodes on this machine would use; recorded in the manifest of a run."""

    versions: dict[str, str]  # by package
    gl: str  # egl or osmesa
    renderer: str  # OpenGL's name of the renderer, for example "llvmpipe (LLVM 15.0.6, 256 bits)"
    assets: Assets
    warnings: tuple[str, ...]  # reasons why a score from here would not be comparable

    @property
    def draws_on_gpu(self) -> bool:
        """Return whether simulators use GPU memory."""
        return self.gl == "egl"


def check_simulator(*, gl: renderers.GL = "auto", assets: str = "auto") -> SimulatorReport:
    """Check for everything that would stop a worker, in about three seconds.

    Sets `MUJOCO_GL` for this process and the ones it starts, so that they need not search again.

    Args:
        gl: renderer, as in the recipe.
        assets: auto, proxy or a folder, as in the recipe.

    Raises:
        SimulatorError: the one thing to fix first.
    """
    chosen = resolve_assets(assets)
    shim.check_installed()
    versions = shim.versions()
    warnings = _version_warnings(versions)
    backend = renderers.choose(gl)
    renderer = renderers.renderer_of(backend)
    _check_import(backend)
    os.environ["MUJOCO_GL"] = backend
    return SimulatorReport(versions, backend, renderer, chosen, warnings)


def simulated_with(assets: str) -> dict[str, str]:
    """Return what of this machine decides about LIBERO's episodes, besides the program: packages and assets.

    The renderer is not part of it: another one draws slightly different pictures of the same physics.

    Args:
        assets: auto, proxy or a folder, as in the recipe.

    Raises:
        SimulatorError: a package is missing, or the folder is not one of assets.
    """
    shim.check_installed()
    chosen = resolve_assets(assets)
    return {**shim.versions(), "bddl": metadata.version("bddl"), "assets": f"{chosen.kind} {_listing_digest(chosen)}"}


def _listing_digest(assets: Assets) -> str:
    """Return a digest of the names and sizes of all files: what is in them would take seconds to read."""
    files = sorted((str(file.relative_to(assets.folder)), file.stat().st_size) for file in assets.folder.rglob("*.*"))
    return hashlib.sha256(repr(files).encode()).hexdigest()[:12]


def _version_warnings(versions: dict[str, str]) -> tuple[str, ...]:
    return tuple(
        f"{package} {versions[package]} is installed; LIBERO's published scores hold only for {pinned}"
        for package, pinned in shim.PINNED.items()
        if versions[package] != pinned
    )


def _check_import(backend: str) -> None:
    """Import LIBERO in a process of its own, because some of its dependencies are undeclared."""
    outcome = run_python(_IMPORT, backend, seconds=IMPORT_SECONDS, variables={"MUJOCO_GL": backend})
    if not outcome.ok:
        kind, _, said = outcome.reason.partition(": ")
        if kind == SimulatorError.__name__:
            raise SimulatorError(said)
        raise SimulatorError(f"hf-libero is installed but cannot be imported: {outcome.reason}. Fix: {INSTALL_HINT}")
