"""Attributes of HDF5 files in LIBERO's layout: those that tell raw files from ours, and those that other readers need.

LIBERO's and robomimic's loaders find episodes and their lengths by attributes alone. `model_file`, the XML of the whole
simulator, is not written: it is larger than a short episode's numbers, names files of the machine that recorded it, and
no loader of training data needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vla_rl.demos.h5_files import open_h5, read_array

if TYPE_CHECKING:
    from vla_rl.demos.h5_files import Group

SOURCE = "vla_rl_source"  # of `data`, in files that this program wrote: how they were made
ENVIRONMENT = ("env_args", "problem_info", "bddl_file_name")  # of `data`: the simulated task, as LIBERO names it
_RAW_ROOT = frozenset({*ENVIRONMENT, "macros_image_convention", "env_name", "bddl_file_content"})
_RAW_DEMO = frozenset({"num_samples", "model_file", "init_state"})


def is_raw(data: Group, demo: Group) -> bool:
    """Return whether the attributes are those of a raw file, in which pictures are one row late.

    This program's own files have some of them too, and are aligned.

    Args:
        data: the group of all demonstrations.
        demo: one of them.
    """
    return SOURCE not in data.attrs and bool(_RAW_ROOT & set(data.attrs) or _RAW_DEMO & set(demo.attrs))


def write_counts(data: Group) -> None:
    """Write how many rows each demonstration has and all have together, and the first state of each, if it has any.

    Args:
        data: the group of all demonstrations, complete.
    """
    total = 0
    for demo in data.values():
        rows = len(demo["actions"])
        demo.attrs["num_samples"] = rows
        if "states" in demo:
            demo.attrs["init_state"] = read_array(demo, "states")[0]
        total += rows
    data.attrs["total"] = total


def copy_environment(file: Path | str, data: Group) -> None:
    """Copy what another file says about the simulated task, as far as it does."""
    with open_h5(Path(file)) as source:
        for name in ENVIRONMENT:
            if name in source["data"].attrs:
                data.attrs[name] = source["data"].attrs[name]
