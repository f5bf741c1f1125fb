"""Only importer of LIBERO, robosuite and MuJoCo, with everything that must be set up before they are imported.

It avoids these problems of the stock packages:

* `import libero.libero` asks a question on the terminal unless `LIBERO_CONFIG_PATH` names a folder with a config.
* hf-libero downloads assets at first use, regardless of its config, unless a module variable names a folder.
* The renderer is fixed by `MUJOCO_GL` when robosuite is imported, and its EGL device by `CUDA_VISIBLE_DEVICES`, whose
  empty value raises.
* numba caches compiled code beside the packages' source; if neither that nor the home folder is writable, it refuses to
  compile.
* robosuite opens `/tmp/robosuite.log`, which belongs to its first user on a shared machine.
* One placement sampler drops into the debugger when it fails.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vla_rl.envs.libero import gl as renderers
from vla_rl.envs.libero.cache import cache_root, publish_folder
from vla_rl.envs.libero.egl_devices import device_to_draw_on
from vla_rl.envs.libero.suites import INSTALL_HINT, wheel_root
from vla_rl.errors import SimulatorError

# Scores differ on other versions: from mujoco 3.3.3 on, the floor of the Object suite is darker; from 3.4 on, Spatial
# task 5 settles differently; robosuite 1.5 removed the class that LIBERO derives from.
PINNED = {"mujoco": "3.3.0", "robosuite": "1.4.0", "hf-libero": "0.1.4"}
_SHORT_OF_MEMORY = (
    "start fewer env workers, because each context takes memory of the graphics card, or draw with MUJOCO_GL=osmesa"
)


@dataclass(frozen=True, slots=True)
class Libraries:
    """Imported modules, which have no types."""

    mujoco: Any
    problems: Any  # TASK_MAPPING: problem class by name
    problem_info: Any  # the BDDL parser
    object_class: Any  # from a category's name
    controller_config: Any
    drive: Any  # the arm's compiled control law
    observable: Any  # robosuite's timed sensor
    gl_context: Any  # robosuite's class for the chosen renderer
    randomization_error: type[Exception]


_loaded: tuple[str, Libraries] | None = None


def load(*, gl: renderers.GL) -> Libraries:
    """Import the simulator, once per process, after fixing the renderer.

    Raises:
        SimulatorError: a package is missing, no renderer works, or this process already uses another renderer.
    """
    global _loaded  # imports are process-wide, and so is the renderer chosen before them
    if _loaded is not None:
        if gl not in ("auto", _loaded[0]):
            raise SimulatorError(f"this process already renders with {_loaded[0]}; {gl} needs a process of its own")
        return _loaded[1]
    check_installed()
    backend = renderers.choose(gl)
    os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = backend
    os.environ["LIBERO_CONFIG_PATH"] = str(_config_folder())
    os.environ.setdefault("NUMBA_CACHE_DIR", str(_compiled_folder()))
    _silence_robosuite_log()
    with _one_error(backend, fix=INSTALL_HINT), _environment(CUDA_VISIBLE_DEVICES=None):
        libraries = _import()
    _loaded = (backend, libraries)
    return libraries


def use_assets(folder: Path) -> None:
    """Make LIBERO read its XML files from here from now on."""
    import libero.libero

    libero.libero._assets_path_cache = str(folder)  # the loader ignores the config's own key


def check_installed() -> None:
    """Check that the packages are installed, without importing them.

    Raises:
        SimulatorError: names the first package that is missing.
    """
    wheel_root()
    for package in ("robosuite", "bddl", "mujoco"):
        if importlib.util.find_spec(package) is None:
            raise SimulatorError(f"{package} is not installed; {INSTALL_HINT}")


def versions() -> dict[str, str]:
    """Return the installed version of every pinned package."""
    return {package: importlib.metadata.version(package) for package in PINNED}


@contextlib.contextmanager
def graphics(backend: str) -> Iterator[None]:
    """Create a context of robosuite's on the device that the probe drew on, with one error for all it raises.

    robosuite raises on a `CUDA_VISIBLE_DEVICES` that is empty or holds UUIDs, and asserts that it lists the device to
    use. Within this block the device is given by `MUJOCO_EGL_DEVICE_ID` alone.

    Raises:
        SimulatorError: nothing can be drawn; gives the reason and the fix.
    """
    with _one_error(backend, fix=_SHORT_OF_MEMORY):
        device = device_to_draw_on() if backend == "egl" else None
        with _environment(CUDA_VISIBLE_DEVICES=None, MUJOCO_EGL_DEVICE_ID=device):
            yield


@contextlib.contextmanager
def _one_error(backend: str, *, fix: str) -> Iterator[None]:
    """Turn everything that robosuite and OpenGL raise while they start into one error.

    Args:
        backend: renderer in use.
        fix: what to do if the renderer is not to blame, because it draws a frame on its own.
    """
    try:
        yield
    except _start_errors() as error:
        if renderers.probe(backend).renderer is None:
            raise SimulatorError(renderers.nothing_renders([backend])) from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise SimulatorError(
            f"LIBERO does not start, although {backend} draws a frame by itself: {reason}. Fix: {fix}"
        ) from error


@contextlib.contextmanager
def _environment(**variables: str | None) -> Iterator[None]:
    """Set environment variables temporarily; None unsets one."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def seeded_reset(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, from which LIBERO draws in a reset, and restore its state afterwards.

    Also disables the debugger, which LIBERO's in-site sampler opens before it raises.
    """
    import pdb

    state = np.random.get_state()
    set_trace = pdb.set_trace
    np.random.seed(seed)
    pdb.set_trace = lambda *_args, **_kwargs: None
    try:
        yield
    finally:
        pdb.set_trace = set_trace
        np.random.set_state(state)


def _start_errors() -> tuple[type[BaseException], ...]:
    """Return the exceptions of mismatched packages and of OpenGL's loaders and calls, which have their own class."""
    own = (("OpenGL.error", "Error"), ("mujoco", "FatalError"))
    imported = [vars(sys.modules[module])[name] for module, name in own if module in sys.modules]
    return (ImportError, AttributeError, RuntimeError, OSError, ValueError, *imported)


def _config_folder() -> Path:
    """Return a folder with the `config.yaml` that LIBERO would otherwise ask the user to make. JSON is valid YAML."""
    root = wheel_root()
    keys = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": root.parent / "datasets",
        "assets": root / "assets",
    }
    text = json.dumps({key: str(path) for key, path in keys.items()}, indent=2)
    return publish_folder("libero-config", {PurePosixPath("config.yaml"): text.encode()})


def _compiled_folder() -> Path:
    """Return numba's cache folder. numba notices changes of a source file, but not of functions it imports."""
    return cache_root() / f"numba-robosuite-{importlib.metadata.version('robosuite')}"


def _silence_robosuite_log() -> None:
    """Load robosuite's settings ahead of robosuite, to turn its log file off before it is opened."""
    name = "robosuite.macros"
    parent = importlib.util.find_spec("robosuite")
    if name in sys.modules or parent is None or parent.origin is None:
        return
    spec = importlib.util.spec_from_file_location(name, Path(parent.origin).with_name("macros.py"))
    if spec is None or spec.loader is None:
        raise SimulatorError(f"robosuite at {parent.origin} has no macros.py; {INSTALL_HINT}")
    macros: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(macros)
    macros.FILE_LOGGING_LEVEL = None
    macros.CONSOLE_LOGGING_LEVEL = "ERROR"
    sys.modules[name] = macros
    # Otherwise every process warns three times that a file of robosuite's developers is missing.
    logging.getLogger("robosuite_logs").addFilter(_is_no_advice)


def _is_no_advice(record: logging.LogRecord) -> bool:
    return "private macro file" not in (text := record.getMessage()) and "setup_macros.py" not in text


def _import() -> Libraries:
    import mujoco
    from libero.libero.envs import TASK_MAPPING, bddl_utils
    from libero.libero.envs.objects import get_object_fn
    from robosuite import load_controller_config
    from robosuite.utils.binding_utils import GLContext
    from robosuite.utils.errors import RandomizationError
    from robosuite.utils.observables import Observable

    from vla_rl.envs.libero.control_law import drive

    GLContext._context = None  # its clean-up reads it, even if it was never created

    return Libraries(
        mujoco=mujoco,
        problems=TASK_MAPPING,
        problem_info=bddl_utils.get_problem_info,
        object_class=get_object_fn,
        controller_config=load_controller_config,
        drive=drive,
        observable=Observable,
        gl_context=GLContext,
        randomization_error=RandomizationError,
    )
