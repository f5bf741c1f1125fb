"""Choice of assets: LIBERO's own if the user has them, otherwise primitives."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vla_rl.envs.libero.cache import cache_root
from vla_rl.envs.libero.proxy.generate import MARK, proxy_folder
from vla_rl.errors import SimulatorError

AssetKind = Literal["proxy", "full"]
ASSETS_VARIABLE = "VLA_RL_LIBERO_ASSETS"
DOWNLOADED_FOLDER = "libero-assets"  # below our cache; `vla-rl assets download` writes to it
SUBFOLDERS = ("articulated_objects", "stable_scanned_objects", "turbosquid_objects", "stable_hope_objects", "scenes")


@dataclass(frozen=True, slots=True)
class Assets:
    """Folder in the layout of LIBERO's `assets/`; its kind does not depend on how it was named."""

    folder: Path
    kind: AssetKind


def resolve_assets(assets: str) -> Assets:
    """Find the folder to simulate with. Never prompts, never downloads.

    Args:
        assets: `proxy` for the generated primitives; a folder of LIBERO's full assets; or `auto`: the folder named by
            `$VLA_RL_LIBERO_ASSETS`, else what `vla-rl assets download` or hf-libero has downloaded before, if
            complete, else `proxy`.

    Raises:
        SimulatorError: a folder that was named lacks one of the five sub-folders.
    """
    if assets == "proxy":
        return Assets(proxy_folder(), "proxy")
    if assets != "auto":
        return _of_folder(_checked(Path(assets).expanduser(), "assets", otherwise="use 'proxy' or 'auto'"))
    if named := os.environ.get(ASSETS_VARIABLE):
        otherwise = "unset the variable, or use 'proxy'"
        return _of_folder(_checked(Path(named).expanduser(), f"${ASSETS_VARIABLE}", otherwise=otherwise))
    for downloaded in (cache_root() / DOWNLOADED_FOLDER, Path.home() / ".cache" / "libero" / "assets"):
        if not _missing(downloaded):
            return _of_folder(downloaded)
    return resolve_assets("proxy")


def _of_folder(folder: Path) -> Assets:
    return Assets(folder, "proxy" if (folder / MARK).is_file() else "full")


def _missing(folder: Path) -> list[str]:
    return [name for name in SUBFOLDERS if not (folder / name).is_dir()]


def _checked(folder: Path, source: str, *, otherwise: str) -> Path:
    if absent := _missing(folder):
        state = f"lacks {', '.join(absent)}" if folder.is_dir() else "does not exist"
        raise SimulatorError(
            f"{source} = {str(folder)!r} is not a folder of LIBERO assets: it {state}. It must hold "
            f"{', '.join(SUBFOLDERS)}, as LIBERO's assets/ does. Fix: name that folder, or {otherwise}"
        )
    return folder.resolve()
