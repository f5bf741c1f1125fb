"""Description of a simulated task in the words of LIBERO's recording script, from files alone."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from vla_rl.envs.libero.env import CAMERAS
from vla_rl.envs.libero.folders.definitions import parse_definition
from vla_rl.envs.libero.simulation import ARGUMENTS, CONTROLLER
from vla_rl.envs.libero.suites import INSTALL_HINT, task_files
from vla_rl.errors import SimulatorError
from vla_rl.types import TaskInfo

_ROBOSUITE = 1  # number of this kind of environment in robomimic


def environment_of(task: TaskInfo, *, image_size: int) -> dict[str, str]:
    """Return the attributes that tell other programs which task a file is of: JSON, and a path.

    Their values are those of `create_dataset.py` of LIBERO, as far as they are true here. The path is relative to the
    folder in which LIBERO's package lies, so that the text does not depend on the machine. Neither fast physics nor
    widened initial states can be told in this form.

    Args:
        task: the task.
        image_size: pixels per side of the pictures.

    Raises:
        SimulatorError: robosuite is not installed.
    """
    files = task_files(task)
    definition = parse_definition(files.bddl.read_text(encoding="utf-8"))
    bddl = f"libero/libero/bddl_files/{task.suite}/{files.bddl.name}"
    arguments = {
        **ARGUMENTS,
        "bddl_file_name": bddl,
        "controller_configs": _controller(),
        "use_camera_obs": True,
        "has_renderer": False,
        "has_offscreen_renderer": True,
        "camera_names": list(CAMERAS.values()),
        "camera_heights": image_size,
        "camera_widths": image_size,
    }
    environment = {
        "type": _ROBOSUITE,
        "env_name": "_".join(word.capitalize() for word in definition.problem.split("_")),  # class of the problem
        "problem_name": definition.problem,
        "bddl_file": bddl,
        "env_kwargs": arguments,
    }
    problem = {
        "problem_name": definition.problem,
        "domain_name": "robosuite",
        "language_instruction": definition.language,
    }
    return {"env_args": json.dumps(environment), "problem_info": json.dumps(problem), "bddl_file_name": bddl}


def _controller() -> Any:  # noqa: ANN401 - JSON
    """Return robosuite's settings of the controller, without importing it."""
    spec = importlib.util.find_spec("robosuite")
    if spec is None or spec.origin is None:
        raise SimulatorError(f"robosuite is not installed; {INSTALL_HINT}")
    path = Path(spec.origin).parent / "controllers" / "config" / f"{CONTROLLER.lower()}.json"
    return json.loads(path.read_text(encoding="utf-8"))
