"""All checks of `vla-rl doctor`, in the order in which they are reported."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vla_rl.doctor.packages import INSTALL
from vla_rl.doctor.record import Check, found_and_fix
from vla_rl.errors import UserError

AtOnce = Callable[[], list[Check]]


def examine(groups: Sequence[tuple[str, AtOnce]] | None = None) -> Iterator[Check]:
    """Run all checks, a few at once, and yield each one in order as soon as those before it are done.

    Args:
        groups: name and checks; by default all of them.
    """
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:  # the threads wait for child processes
        for checks in pool.map(_guarded, GROUPS if groups is None else groups):
            yield from checks


def _guarded(group: tuple[str, AtOnce]) -> list[Check]:
    """Run a group; a missing package (numpy, for example) or an unusable folder becomes a failed check."""
    name, look = group
    try:
        return look()
    except ImportError as error:
        return [Check(name, "failed", f"cannot be looked at: {error}", "", INSTALL)]
    except (OSError, UserError) as error:
        found, fix = found_and_fix(str(error))
        return [Check(name, "failed", f"cannot be looked at: {found}", "", fix or "repair what it names")]


def _packages() -> list[Check]:
    from vla_rl.doctor import packages

    _, requirements = packages.declared()
    return [
        packages.check_python(),
        *packages.check_groups(requirements),
        packages.check_torchvision(),
    ]


def _pins() -> list[Check]:
    from vla_rl.doctor.packages import check_pins
    from vla_rl.envs.libero.shim import PINNED

    return [check_pins(PINNED)]


def _renderers() -> list[Check]:
    from vla_rl.doctor import graphics

    return [*graphics.check_renderers(), graphics.check_users_choice()]


def _libero() -> list[Check]:
    from vla_rl.doctor import simulator

    return [simulator.check_import(), simulator.check_assets()]


def _settling() -> list[Check]:
    from vla_rl.doctor import simulator

    return [simulator.check_settling()]


def _pictures() -> list[Check]:
    from vla_rl.doctor import simulator

    return [simulator.check_floor(), simulator.check_texture()]


def _system() -> list[Check]:
    from vla_rl.doctor import system
    from vla_rl.envs.libero.cache import cache_root

    folders = {
        "cache": (cache_root(), "name another folder in VLA_RL_CACHE"),
        "runs": (Path.cwd(), "work in a folder of yours"),
    }
    return [
        system.check_shared_memory(),
        system.check_memory(),
        *(system.check_disk(name, use) for name, use in system.disk_uses().items()),
        system.check_folders(folders),
    ]


def _gpus() -> list[Check]:
    from vla_rl.doctor import accelerators

    return [accelerators.check_gpus(), accelerators.check_egl_devices()]


def _imports() -> list[Check]:
    from vla_rl.doctor.accelerators import check_import

    return [check_import(name, package=name) for name in ("transformers", "peft", "deepspeed")]


def _hub() -> list[Check]:
    from vla_rl.doctor.internet import check_hub

    return [check_hub()]


GROUPS: tuple[tuple[str, AtOnce], ...] = (
    ("packages", _packages),
    ("simulator versions", _pins),
    ("imports", _imports),
    ("gpus", _gpus),
    ("renderers", _renderers),
    ("libero", _libero),
    ("settle probe", _settling),
    ("brightness probe", _pictures),
    ("system", _system),
    ("model hub", _hub),
)
