"""Furniture and appliances: bodies, joints, regions and primitives.

Order matters twice. Joints appear in the state vector in the order of the bodies, and LIBERO's search for regions stops
at the first nested body that has none, so bodies with regions come first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vla_rl.envs.libero.proxy.movables import TURBOSQUID, Region
from vla_rl.envs.libero.proxy.shapes import (
    NO_TURN,
    Colour,
    Quaternion,
    Shape,
    Shapes,
    Vector,
    about,
    band,
    box,
    disk,
    hollow,
    rotate,
)

ARTICULATED = "articulated_objects"

_METAL = (126, 128, 130)
_DARK = (30, 30, 32)


@dataclass(frozen=True, slots=True)
class Hinge:
    """Joint of a moving part."""

    name: str
    kind: str  # slide or hinge
    axis: Vector
    range: tuple[float, float]
    damping: float


@dataclass(frozen=True, slots=True)
class Body:
    """Body of a fixture."""

    name: str
    shapes: Shapes = ()
    pos: Vector = (0.0, 0.0, 0.0)
    quat: Quaternion = NO_TURN
    joint: Hinge | None = None
    kilograms: float | None = None  # an explicit mass with unit inertia, as the originals' moving parts have
    regions: tuple[Region, ...] = ()
    lamp: bool = False  # the stove's burner: a site whose alpha LIBERO toggles
    parts: tuple[Body, ...] = ()


@dataclass(frozen=True, slots=True)
class Fixture:
    """Kind of object that stands still."""

    folder: str
    sites: tuple[float, float, float]  # bottom z, top z, radius
    root: Body
    contact: str = "standard"  # key of mjcf.CONTACT


def _drawer(
    name: str, joint: str, centre: float, low: float, high: float, colours: tuple[Colour, Colour, Colour]
) -> Body:
    """Build a drawer that slides out along -y: four walls, a floor, a bar to pull, and a face framed by its seams."""
    face, handle, seam = colours
    walls = hollow(
        (-0.106, -0.078, low),
        (0.113, 0.094, high),
        {"-z": 0.008, "-y": 0.012, "+y": 0.006, "-x": 0.006, "+x": 0.006},
        face,
    )
    bar = centre - 0.005
    return Body(
        name=f"cabinet_{name}",
        joint=Hinge(joint, "slide", (0.0, 1.0, 0.0), (-0.16, 0.01), 50.0),
        kilograms=3.0,
        regions=(
            Region(
                f"{name}_region",
                (0.0299, 0.0756, 0.1022),
                (0.0033, 0.0113, centre),
                (math.sqrt(0.5), 0.0, math.sqrt(0.5), 0.0),
            ),
        ),
        shapes=(
            *walls,
            *(
                box((-0.106, -0.0815, z), (0.113, -0.0760, z + 0.005), seam, collides=False)
                for z in (low, high - 0.005)
            ),
            box((-0.047, -0.109, bar - 0.008), (0.042, -0.094, bar + 0.008), handle),
            box((-0.041, -0.094, bar - 0.005), (-0.031, -0.078, bar + 0.005), handle),
            box((0.024, -0.094, bar - 0.005), (0.034, -0.078, bar + 0.005), handle),
        ),
    )


def _cabinet(carcass: Colour, face: Colour, handle: Colour, seam: Colour) -> Fixture:
    """Build three drawers, one above the other. Gaps of 1-2 mm keep drawers from touching each other and the walls."""
    walls = hollow(
        (-0.123, -0.079, 0.005),
        (0.131, 0.112, 0.2225),
        {"+z": 0.005, "-z": 0.005, "+y": 0.014, "-x": 0.014, "+x": 0.015},
        carcass,
    )
    base = Body(
        name="base",
        shapes=walls,
        regions=(Region("top_side", (0.1253, 0.0944, 0.0015), (0.0035, 0.0157, 0.2215)),),
        parts=(
            _drawer("top", "top_level", 0.1856, 0.1495, 0.2160, (face, handle, seam)),
            _drawer("middle", "middle_level", 0.1169, 0.0805, 0.1475, (face, handle, seam)),
            _drawer("bottom", "bottom_level", 0.0470, 0.0115, 0.0785, (face, handle, seam)),
        ),
    )
    return Fixture(ARTICULATED, (-0.045, 0.045, 0.045), Body(name="object", parts=(base,)))


def _stove() -> Fixture:
    """Build a hot plate with a knob beside it; the lamp over the plate lights up when the knob passes 0.5."""
    burner = Body(
        name="burner",
        pos=(0.15, 0.0, 0.0),
        regions=(Region("cook_region", (0.075, 0.075, 0.0025), (0.0, 0.0, 0.0)),),
        lamp=True,
        shapes=(
            box((-0.095, -0.095, -0.020), (0.095, 0.095, 0.020), (168, 170, 172)),
            box((-0.095, -0.095, 0.0245), (0.095, 0.095, 0.0255), _METAL, visible=False),
        ),
        parts=(
            Body(
                name="burner_plate",
                shapes=(
                    band(0.078, 0.020, 0.0212, _DARK),
                    band(0.066, 0.0212, 0.0216, (88, 88, 90)),
                    band(0.040, 0.0216, 0.0218, _DARK),
                ),
            ),
        ),
    )
    button = Body(
        name="button",
        quat=about("z", math.pi / 2.0),
        joint=Hinge("button", "hinge", (0.0, 0.0, 1.0), (-0.005, 2.1), 1.0),
        kilograms=3.0,
        shapes=(
            *disk(0.046, 0.0, 0.013, (60, 60, 62)),
            box((-0.011, -0.044, 0.013), (0.013, 0.047, 0.050), _DARK),
            box((-0.003, 0.020, 0.0500), (0.003, 0.047, 0.0504), (220, 60, 40), collides=False),
        ),
    )
    root = Body(name="object", parts=(Body(name="base", parts=(burner, button)),))
    return Fixture(ARTICULATED, (-0.045, 0.045, 0.045), root)


def _microwave() -> Fixture:
    """Build an oven that is open in front, a door with a window, and a panel beside the door."""
    body = (51, 51, 51)
    walls = hollow(
        (-0.173, -0.088, 0.0),
        (0.173, 0.111, 0.187),
        {"-z": 0.024, "+z": 0.019, "+y": 0.031, "-x": 0.030, "+x": 0.109},
        body,
    )
    panel = (
        box((0.090, -0.111, 0.004), (0.173, -0.088, 0.187), (70, 70, 72)),
        box((0.100, -0.1114, 0.130), (0.163, -0.1106, 0.165), (40, 200, 120), collides=False),
        box((0.110, -0.1120, 0.030), (0.153, -0.1106, 0.110), (134, 132, 131), collides=False),
    )
    # In the frame of the door, whose hinge is at -0.1725 -0.088 0.096.
    door = Body(
        name="microdoorroot",
        pos=(-0.1725, -0.088, 0.096),
        joint=Hinge("microjoint", "hinge", (0.0, 0.0, 1.0), (-2.094, 0.0), 0.5),
        shapes=(
            box((0.000, -0.023, -0.092), (0.259, -0.001, -0.060), (134, 132, 131)),
            box((0.000, -0.023, 0.060), (0.259, -0.001, 0.092), (134, 132, 131)),
            box((0.000, -0.023, -0.060), (0.030, -0.001, 0.060), (134, 132, 131)),
            box((0.215, -0.023, -0.060), (0.259, -0.001, 0.060), (134, 132, 131)),
            box((0.030, -0.018, -0.060), (0.215, -0.006, 0.060), (102, 102, 102, 0.25)),
            box((0.236, -0.064, -0.065), (0.250, -0.050, 0.065), _DARK),
            box((0.236, -0.050, -0.065), (0.250, -0.023, -0.050), _DARK),
            box((0.236, -0.050, 0.050), (0.250, -0.023, 0.065), _DARK),
        ),
    )
    root = Body(
        name="object",
        shapes=(*walls, *panel),
        regions=(
            Region("top_side", (0.12, 0.0835, 0.005), (0.0, 0.01, 0.2)),
            Region("heating_region", (0.12, 0.0835, 0.08), (0.0, 0.01, 0.096)),
        ),
        parts=(door,),
    )
    # The search for regions finds the root first and visits nested bodies only from the door on.
    return Fixture(ARTICULATED, (-0.06, 0.06, 0.015), root, contact="microwave")


_RACK_TURN: Quaternion = (0.8549, -0.5188, 0.0, 0.0)
_RACK_PLACE: Vector = (0.0, -0.08, 0.2174)


def _on_rack(low: Vector, high: Vector, colour: Colour) -> Shape:
    """Build a box given in the frame of the rack's tilted shelf."""
    centre: Vector = ((low[0] + high[0]) / 2.0, (low[1] + high[1]) / 2.0, (low[2] + high[2]) / 2.0)
    x, y, z = rotate(_RACK_TURN, centre)
    half = tuple((b - a) / 2.0 for a, b in zip(low, high, strict=True))
    pos = (_RACK_PLACE[0] + x, _RACK_PLACE[1] + y, _RACK_PLACE[2] + z)
    return Shape("box", pos, half, colour, _RACK_TURN)


def _wine_rack() -> Fixture:
    """Build two frames, a tilted shelf with a ledge for a bottle, and rails behind it."""
    light, dark = (208, 172, 133), (110, 50, 26)
    sides = tuple(
        piece
        for x in (-0.134, 0.118)
        for piece in (
            box((x, -0.124, -0.002), (x + 0.016, 0.130, 0.022), light),
            box((x, 0.106, 0.022), (x + 0.016, 0.130, 0.328), light),
            box((x, -0.124, 0.022), (x + 0.016, -0.100, 0.196), light),
            box((x, -0.100, 0.090), (x + 0.016, 0.106, 0.110), light),
        )
    )
    shelf = (
        _on_rack((-0.118, -0.034, -0.032), (0.118, 0.034, -0.024), dark),  # the bottle leans on this
        _on_rack((-0.118, 0.022, -0.024), (0.118, 0.030, 0.020), dark),  # and is held by this
    )
    rails = tuple(box((-0.118, 0.110, z), (0.118, 0.126, z + 0.018), dark) for z in (0.060, 0.180, 0.300))
    root = Body(
        name="object",
        shapes=(*sides, *rails),
        parts=(
            Body(
                name="shelf",
                shapes=shelf,
                regions=(Region("top_region", (0.1009, 0.022, 0.0025), _RACK_PLACE, _RACK_TURN),),
            ),
        ),
    )
    return Fixture(TURBOSQUID, (-0.06, 0.04, 0.025), root)


def _desk_caddy() -> Fixture:
    """Build four compartments that are open at the top."""
    wood, rim = (62, 62, 70), (84, 84, 94)
    floor = box((-0.076, -0.217, 0.001), (0.076, 0.217, 0.014), wood)
    ends = tuple(box((-0.076, y, 0.014), (0.076, y + 0.007, 0.130), rim) for y in (-0.217, 0.210))
    dividers = tuple(box((-0.076, y, 0.014), (0.076, y + 0.007, 0.150), rim) for y in (-0.0755, 0.0685))
    back = box((0.069, -0.210, 0.014), (0.076, 0.210, 0.168), wood)
    middle = box((-0.008, -0.0685, 0.014), (-0.001, 0.0685, 0.150), rim)
    front = (
        box((-0.076, -0.210, 0.014), (-0.069, -0.0755, 0.110), wood),
        box((-0.076, 0.0755, 0.014), (-0.069, 0.210, 0.110), wood),
        box((-0.076, -0.0685, 0.014), (-0.069, 0.0685, 0.080), wood),
    )
    half_turn: Quaternion = (0.0, 0.0, 1.0, 0.0)
    regions = (
        Region("right_contain_region", (0.062, 0.0622, 0.0605), (0.0063, -0.1434, 0.0656), half_turn),
        Region("left_contain_region", (0.062, 0.0622, 0.0605), (0.0063, 0.1455, 0.0656), half_turn),
        Region("back_contain_region", (0.0278, 0.0622, 0.0605), (0.0336, -0.0006, 0.0856), half_turn),
        Region(
            "front_contain_region",
            (0.0278, 0.036, 0.0622),
            (-0.031, -0.0006, 0.0405),
            (0.0, 0.0, math.sqrt(0.5), -math.sqrt(0.5)),
        ),
    )
    root = Body(name="object", shapes=(floor, *ends, *dividers, back, middle, *front), regions=regions)
    return Fixture(TURBOSQUID, (-0.06, 0.04, 0.025), root)


FIXTURES: dict[str, Fixture] = {
    "wooden_cabinet": _cabinet((66, 52, 42), (88, 66, 50), (150, 150, 150), (190, 162, 128)),
    "white_cabinet": _cabinet((215, 213, 210), (228, 226, 224), (150, 150, 150), (160, 158, 155)),
    "flat_stove": _stove(),
    "microwave": _microwave(),
    "wine_rack": _wine_rack(),
    "desk_caddy": _desk_caddy(),
}
