"""LIBERO's stored initial states, read as arrays only although the files are pickles.

A file is a zip archive with one pickle of a float64 array (n, 1 + nq + nv): time, positions, velocities.
"""

from __future__ import annotations

import _codecs
import io
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vla_rl.envs.libero.suites import task_files
from vla_rl.errors import SimulatorError
from vla_rl.types import TaskInfo

InitStates = Literal["standard", "spare", "sampled", "widened"]
StateArray = NDArray[np.float64]

_PICKLE_MEMBER = "archive/data.pkl"
_MAX_BYTES = 64 * 2**20  # the largest real file holds 0.1 MB
# Exceptions that zipfile, pickle and NumPy document for damaged files.
_DAMAGE = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    AttributeError,
    ImportError,
    TypeError,
    ValueError,
    MemoryError,
    NotImplementedError,
    OverflowError,
)


def _array_reconstruct() -> Any:  # noqa: ANN401 - a C function without a public type
    """Return the function by which NumPy arrays name themselves in a pickle (the module moved in NumPy 2)."""
    return np.ndarray(0).__reduce__()[0]


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that resolves only the four names an array needs, so that nothing in a file can run code."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): _array_reconstruct(),
            ("numpy._core.multiarray", "_reconstruct"): _array_reconstruct(),
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _codecs.encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only numpy arrays are admitted")
        return allowed[module, name]


def read_states(path: Path) -> StateArray:
    """Read the array of a `.init` or `.pruned_init` file, (n, 1 + nq + nv).

    Raises:
        SimulatorError: the file is missing, damaged, or holds anything but a float64 array, 2-d or of one state.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(_PICKLE_MEMBER).file_size > _MAX_BYTES:
                raise pickle.UnpicklingError(f"{_PICKLE_MEMBER} is larger than {_MAX_BYTES} bytes")
            states = _ArrayUnpickler(io.BytesIO(archive.read(_PICKLE_MEMBER))).load()
    except _DAMAGE as error:
        raise SimulatorError(f"{path} is not a file of LIBERO initial states: {error}") from error
    if isinstance(states, np.ndarray) and states.ndim == 1:  # LIBERO-plus stores single states so
        states = states[None]
    if not isinstance(states, np.ndarray) or states.ndim != 2 or states.dtype != np.float64:
        raise SimulatorError(f"{path} must hold a 2-d float64 array, found {type(states).__name__}")
    return states


def load_states(task: TaskInfo, init_states: InitStates) -> StateArray | None:
    """Load the named set of a task's initial states, (n, 1 + nq + nv); None for `sampled` and `widened`.

    `standard` are the benchmark's 50, on which every published score is measured. `spare` are the states of the
    `.init` file that are not among them: free for training. `sampled` is LIBERO's own placement sampler, and
    `widened` the same after the scene was moved by some centimetres, which the benchmark never does (`widening`).

    Raises:
        SimulatorError: there is no set of this name, or no `spare` set in the suite (Object, Goal).
    """
    if init_states not in get_args(InitStates):
        raise SimulatorError(
            f"init_states {init_states!r} does not exist; choose from {', '.join(get_args(InitStates))}"
        )
    if init_states in ("sampled", "widened"):
        return None
    files = task_files(task)
    standard = read_states(files.standard_states)
    if init_states == "standard":
        return standard
    every = read_states(files.all_states) if files.all_states.exists() else standard
    spare: StateArray = every[~(every[:, None] == standard[None]).all(axis=2).any(axis=1)]
    if len(spare) == 0:
        raise SimulatorError(
            f"init_states 'spare' does not exist for {task.suite}: its files hold only the standard states; "
            "use 'sampled' to train on other states, or 'standard'"
        )
    return spare


def num_init_states(task: TaskInfo, init_states: InitStates) -> int | None:
    """Return the number of initial states in a set; None if any number from 0 is valid (`sampled`)."""
    states = load_states(task, init_states)
    return None if states is None else len(states)
