"""The files of the proxy assets, in the layout of LIBERO's `assets/` folder."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from vla_rl.envs.libero.cache import publish_folder
from vla_rl.envs.libero.proxy.arenas import ARENAS, FLOOR_TEXTURES, WALL_TEXTURES
from vla_rl.envs.libero.proxy.fixtures import ARTICULATED, FIXTURES
from vla_rl.envs.libero.proxy.mjcf import arena_xml, fixture_xml, movable_xml, tile_png
from vla_rl.envs.libero.proxy.movables import MOVABLES


def proxy_files() -> dict[PurePosixPath, bytes]:
    """Every file of the proxy assets: relative path to content."""
    files: dict[PurePosixPath, bytes] = {}
    for name, movable in MOVABLES.items():
        files[PurePosixPath(movable.folder, name, f"{name}.xml")] = movable_xml(name, movable)
    for name, fixture in FIXTURES.items():
        nested = () if fixture.folder == ARTICULATED else (name,)
        files[PurePosixPath(fixture.folder, *nested, f"{name}.xml")] = fixture_xml(name, fixture)
    for name, arena in ARENAS.items():
        files[PurePosixPath("scenes", f"{name}.xml")] = arena_xml(name, arena)
    for name, colour in FLOOR_TEXTURES.items():
        files[PurePosixPath("textures", name)] = tile_png(colour, joints=True)
    for name, colour in WALL_TEXTURES.items():
        files[PurePosixPath("textures", name)] = tile_png(colour, joints=False)
    return files


def proxy_folder() -> Path:
    """The proxy assets on disk, generated at the first call of a version and reused after."""
    return publish_folder("libero-proxy-assets", proxy_files())
