"""Rooms and tables: one arena per problem class, with the names that LIBERO's arena classes look up."""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.envs.libero.proxy.shapes import Colour, Shapes, box, drawn


@dataclass(frozen=True, slots=True)
class Arena:
    """Room of a problem class. LIBERO sets the sizes of `table`; other tables have their own shapes."""

    floor: Colour
    wall: Colour
    surface: Colour
    floor_body: bool = False  # the floor's plane inside a body that LIBERO appends zones to
    sized_table: bool = False  # a body `table` whose geoms LIBERO resizes
    table: tuple[str, Shapes] | None = None  # name and shapes of a table with fixed sizes
    background: Shapes = ()


_KITCHEN_BACK = drawn(
    (
        box((-1.95, -1.50, 0.00), (-1.45, 1.50, 0.88), (150, 120, 92)),
        box((-1.97, -1.50, 0.88), (-1.43, 1.50, 0.92), (96, 92, 90)),
        box((-1.95, -1.50, 1.45), (-1.65, 1.50, 2.00), (168, 136, 104)),
        box((-1.70, -0.20, 0.92), (-1.50, 0.20, 0.95), (50, 50, 52)),
    )
)
_LIVING_ROOM_BACK = drawn(
    (
        box((-1.95, -1.10, 0.00), (-1.60, 1.10, 0.45), (120, 86, 60)),
        box((-1.90, -0.60, 0.60), (-1.86, 0.60, 1.25), (32, 34, 38)),
    )
)
_STUDY_BACK = drawn(
    (
        box((-1.95, -1.60, 0.00), (-1.60, -0.50, 1.80), (136, 104, 74)),
        box((-1.94, 0.20, 1.00), (-1.90, 0.95, 1.55), (92, 120, 150)),
        box((-1.70, -0.62, 0.90), (-1.55, -0.55, 1.10), (40, 60, 110)),
    )
)
_LIVING_ROOM_TABLE = (
    box((-0.694, -0.620, 0.413), (0.194, 0.724, 0.437), (116, 82, 60)),
    box((-0.640, -0.360, 0.000), (0.140, 0.460, 0.413), (91, 65, 52)),
)
_STUDY_TABLE = (
    box((-0.689, -1.393, 0.813), (0.689, 1.393, 0.885), (178, 142, 104)),
    *(box((x, y, 0.0), (x + 0.06, y + 0.10, 0.813), (120, 92, 66)) for x in (-0.53, 0.47) for y in (-0.74, 0.66)),
)

_WOOD = (198, 181, 162)

ARENAS: dict[str, Arena] = {
    "libero_tabletop_base_style": Arena((194, 185, 176), (223, 219, 212), _WOOD, sized_table=True),
    "libero_kitchen_tabletop_base_style": Arena(
        (186, 170, 154), (220, 213, 180), _WOOD, sized_table=True, background=_KITCHEN_BACK
    ),
    "libero_floor_base_style": Arena((194, 185, 176), (223, 219, 212), _WOOD, floor_body=True),
    "libero_living_room_tabletop_base_style": Arena(
        (234, 201, 138),
        (223, 219, 212),
        _WOOD,
        floor_body=True,
        table=("living_room_table", _LIVING_ROOM_TABLE),
        background=_LIVING_ROOM_BACK,
    ),
    "libero_study_base_style": Arena(
        (194, 185, 176),
        (223, 219, 212),
        _WOOD,
        table=("study_table", _STUDY_TABLE),
        background=_STUDY_BACK,
    ),
}

# LIBERO replaces the file names of the floor's and the wall's texture by one of these, per problem class.
FLOOR_TEXTURES: dict[str, Colour] = {
    "light-gray-floor-tile.png": (194, 185, 176),
    "gray_ceramic_tile.png": (186, 170, 154),
    "seamless_wood_planks_floor.png": (234, 201, 138),
}
WALL_TEXTURES: dict[str, Colour] = {
    "light-gray-plaster.png": (223, 219, 212),
    "yellow_linen_wall_texture.png": (220, 213, 180),
}
