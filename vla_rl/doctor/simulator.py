"""Checks of LIBERO: that it can be imported, with what assets, and that it renders and moves as it should."""

from __future__ import annotations

import json
from collections.abc import Callable

from vla_rl.doctor.record import Check, found_and_fix
from vla_rl.envs.libero import probes, shim
from vla_rl.envs.libero.assets import ASSETS_VARIABLE, AssetKind, resolve_assets
from vla_rl.envs.libero.child import Outcome, run_python
from vla_rl.envs.libero.full_assets import missing_files
from vla_rl.envs.libero.suites import INSTALL_HINT
from vla_rl.errors import SimulatorError

IMPORT_SECONDS = 300.0  # from a slow disk
PROBE_SECONDS = 300.0  # the first run on a machine takes half a minute to compile code of the arm's controller

_IMPORT = "from vla_rl.envs.libero import shim; shim.load(gl='auto')"
_SETTLE = """
import dataclasses, json, sys
from vla_rl.envs.libero import probes
print(json.dumps([dataclasses.asdict(settling) for settling in probes.measure_settling(sys.argv[1])]))
"""
_FLOOR = """
import json, sys
from vla_rl.envs.libero import probes
print(json.dumps(probes.measure_floor_brightness(sys.argv[1])))
"""
_TEXTURE = "from vla_rl.envs.libero import probes; print(probes.measure_marked_texture())"
_PIN = f"pip install mujoco=={shim.PINNED['mujoco']}: scores made with this one are not comparable"

Run = Callable[..., Outcome]


def check_import(*, run: Run = run_python) -> Check:
    """Import LIBERO in a clean process."""
    name = "import libero"
    try:
        shim.check_installed()
    except SimulatorError as error:
        return Check(name, "failed", str(error).partition("; ")[0], "", INSTALL_HINT)
    outcome = run(_IMPORT, seconds=IMPORT_SECONDS)
    if outcome.ok:
        return Check(name, "ok", "works")
    found, fix = found_and_fix(outcome.reason)
    return Check(name, "failed", found, "", fix or INSTALL_HINT)


def check_assets() -> Check:
    """Report the assets that `env.assets=auto` takes, and whether all 40 tasks find their files in them."""
    name = "libero assets"
    try:
        assets = resolve_assets("auto")
        missing = missing_files(assets.folder)
    except SimulatorError as error:
        found, fix = found_and_fix(str(error))
        return Check(name, "failed", found, "", fix or INSTALL_HINT)
    found = f"{assets.kind}: {assets.folder}"
    if missing:
        fix = "vla-rl assets check lists everything; vla-rl assets download fetches a complete copy"
        return Check(name, "failed", f"{found}: {len(missing)} problems, first: {missing[0]}", "40 tasks complete", fix)
    if assets.kind == "proxy":
        fix = f"vla-rl assets download, or name a folder of LIBERO's assets in {ASSETS_VARIABLE}"
        return Check(name, "warning", found, "full assets for scores; the primitives are for trying things out", fix)
    return Check(name, "ok", found, "40 tasks complete")


def check_settling(*, run: Run = run_python) -> Check:
    """Check that the bowl of Spatial task 5 settles as it does with the pinned MuJoCo (`envs.libero.probes`)."""
    name = "settle probe"
    kind = _asset_kind()
    if kind is None:
        return Check(name, "skipped", "no usable assets")
    outcome = run(_SETTLE, "auto", seconds=PROBE_SECONDS)
    if not outcome.ok:
        return _not_running(name, outcome, run)
    settlings = [probes.Settling(**answer) for answer in json.loads(outcome.output)]
    worst = next((one for one in settlings if not probes.is_settled(one, kind)), None)
    shown = worst or settlings[0]
    found = (
        f"bowl {shown.drift_mm:.1f} mm aside, tilted {shown.tilt_degrees:.1f} degrees, at {shown.height_mm:.1f} mm "
        f"({kind} assets, {len(settlings)} states)"
    )
    at, by = probes.SETTLED[kind]
    allowed = (
        f"{at.drift_mm:.1f} mm ± {by.drift_mm}, {at.tilt_degrees:.1f} degrees ± {by.tilt_degrees}, "
        f"{at.height_mm:.1f} mm ± {by.height_mm}"
    )
    return Check(name, "failed", found, allowed, _PIN) if worst else Check(name, "ok", found, allowed)


def check_floor(*, run: Run = run_python) -> Check:
    """Check that the floor of Object task 0 is as bright as with the pinned MuJoCo."""
    kind = _asset_kind()
    if kind is None:
        return Check("brightness probe", "skipped", "no usable assets")
    outcome = run(_FLOOR, "auto", seconds=PROBE_SECONDS)
    unit = f"of 255 ({kind} assets)"
    if not outcome.ok:
        return _not_running("brightness probe", outcome, run)
    return _judge_grey("brightness probe", outcome, probes.FLOOR_BRIGHTNESS[kind], "a floor of", unit)


def check_texture(*, run: Run = run_python) -> Check:
    """Check that a texture marked as sRGB keeps its grey; covers what `check_floor` cannot with unmarked textures."""
    outcome = run(_TEXTURE, seconds=PROBE_SECONDS)
    if not outcome.ok:
        return _not_running("texture probe", outcome, run)
    return _judge_grey("texture probe", outcome, float(probes.MARKED_GREY), "a marked grey drawn as", "of 255")


def _judge_grey(name: str, outcome: Outcome, expected: float, what: str, unit: str) -> Check:
    grey = float(outcome.output)
    found, allowed = f"{what} {grey:.0f} {unit}", f"{expected:.0f} ± {probes.BRIGHTNESS_TOLERANCE:.0f}"
    if abs(grey - expected) > probes.BRIGHTNESS_TOLERANCE:
        return Check(name, "failed", found, allowed, _PIN)
    return Check(name, "ok", found, allowed)


def _not_running(name: str, outcome: Outcome, run: Run) -> Check:
    """Report a probe that ended early, or skip it if LIBERO does not even start: `check_import` reports that."""
    found, fix = found_and_fix(outcome.reason)
    found = f"LIBERO does not run: {found.partition(', tried')[0]}"
    if check_import(run=run).status == "failed":
        return Check(name, "skipped", found)
    return Check(name, "failed", found, "", fix or f"repair what it names; {INSTALL_HINT}")


def _asset_kind() -> AssetKind | None:
    try:
        return resolve_assets("auto").kind
    except SimulatorError:
        return None
