"""Objects that a task moves, as primitives.

Bounds, masses, placement sites and inner radii follow the collision geometry of the originals; a few colours
distinguish the objects. The origin is the original's, because success is decided by the distance of origins.
"""

from __future__ import annotations

from dataclasses import dataclass

from vla_rl.envs.libero.proxy.shapes import Colour, Shapes, Vector, band, box, disk, drawn, ring

HOPE = "stable_hope_objects"
SCANNED = "stable_scanned_objects"
TURBOSQUID = "turbosquid_objects"

_BLACK = (28, 28, 30)
_WHITE = (238, 238, 236)


@dataclass(frozen=True, slots=True)
class Region:
    """A box-shaped site that a goal can name."""

    name: str
    half: Vector
    pos: Vector
    quat: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Movable:
    """Kind of object with a free joint."""

    folder: str
    grams: float
    sites: tuple[float, float, float]  # bottom z, top z, radius: how LIBERO's samplers stack and space things
    shapes: Shapes
    regions: tuple[Region, ...] = ()


def _carton(width: float, height: tuple[float, float], body: Colour, roof: Colour, panel: Colour) -> Shapes:
    """Build a square carton along y with a gable at its upper end."""
    low, high = height
    shoulder = high - 0.030
    return (
        box((-width, low, -width), (width, shoulder, width), body),
        box((-width, shoulder, -0.6 * width), (width, shoulder + 0.015, 0.6 * width), roof),
        box((-width, shoulder + 0.015, -0.25 * width), (width, high, 0.25 * width), roof),
        box(
            (-width - 4e-4, low + 0.015, -0.8 * width), (width + 4e-4, low + 0.065, 0.8 * width), panel, collides=False
        ),
        box(
            (-0.8 * width, low + 0.015, -width - 4e-4), (0.8 * width, low + 0.065, width + 4e-4), panel, collides=False
        ),
    )


def _can(label: Colour, stripe: Colour) -> Shapes:
    """Build a tin can along y, 3.5 mm below its origin in z: metal ends, a label and a stripe."""
    centre = (0.0, 0.0035)  # across y, where the second number counts against z
    return (
        *disk(0.0313, -0.0385, 0.038, (168, 170, 172), centre=centre, axis="y"),
        band(0.0317, -0.034, 0.0335, label, centre=centre, axis="y"),
        band(0.0321, -0.010, 0.008, stripe, centre=centre, axis="y"),
    )


def _bottle(body: Colour, label: Colour, cap: Colour) -> Shapes:
    """Build a flat squeeze bottle along y that narrows above the middle."""
    return (
        box((-0.028, -0.072, -0.018), (0.028, 0.015, 0.018), body),
        box((-0.020, 0.015, -0.015), (0.020, 0.045, 0.015), body),
        *disk(0.011, 0.045, 0.073, cap, axis="y"),
        box((-0.0284, -0.055, -0.0184), (0.0284, -0.005, 0.0184), label, collides=False),
    )


def _packet(half: Vector, front: Colour, stripe: Colour) -> Shapes:
    """Build a flat box with a stripe across its face."""
    x, y, z = half
    return (
        box((-x, -y, -z), half, front),
        box((-x - 4e-4, -0.45 * y, -z - 4e-4), (x + 4e-4, 0.45 * y, z + 4e-4), stripe, collides=False),
    )


def _mug(
    *,
    x: float,
    inner: tuple[float, float],
    heights: tuple[float, float, float],
    wall: float,
    handle: tuple[float, float],
    colours: tuple[Colour, Colour],
) -> Shapes:
    """Build a cup with a handle of three bars.

    Args:
        x: centre of the cup.
        inner: inner radius at the floor and at the rim.
        heights: bottom, top of the floor, rim.
        wall: thickness.
        handle: x of the handle's outer side, x where it meets the cup.
        colours: colours of the outside, and of the rim and handle.
    """
    outside, accent = colours
    bottom, floor, rim = heights
    outer, root = handle
    low, high = sorted((outer, root))
    band_low = rim - 0.3 * (rim - floor)
    split = inner[0] + 0.7 * (inner[1] - inner[0])
    grip = sorted((outer, outer + (0.010 if root > outer else -0.010)))
    third = (rim - bottom) / 4.0
    return (
        *disk(inner[0] + wall, bottom, floor, outside, centre=(x, 0.0), sides=8),
        *ring((inner[0], floor), (split, band_low), wall, outside, centre=(x, 0.0)),
        *ring((split, band_low), (inner[1], rim), wall, accent, centre=(x, 0.0)),
        box((low, -0.006, bottom + third), (high, 0.006, bottom + third + 0.010), accent),
        box((low, -0.006, rim - third), (high, 0.006, rim - third + 0.010), accent),
        box((grip[0], -0.006, bottom + third), (grip[1], 0.006, rim - third + 0.010), accent),
    )


_BOWL = (
    *disk(0.034, 0.002, 0.009, _BLACK, sides=8),
    *ring((0.034, 0.006), (0.042, 0.020), 0.003, _BLACK),
    *ring((0.042, 0.020), (0.050, 0.052), 0.003, _BLACK),
)

_PLATE = (
    # As with the original, a bowl stands 3.8 mm above the plate: success compares the heights of their origins.
    *disk(0.050, -0.003, 0.0058, _WHITE),
    *ring((0.048, 0.003), (0.067, 0.014), 0.003, (214, 218, 222)),
    band(0.034, 0.0058, 0.0062, (150, 170, 190)),
    band(0.031, 0.0062, 0.0066, _WHITE),
)

_RAMEKIN = (
    *disk(0.038, 0.001, 0.008, (237, 240, 244)),
    *ring((0.034, 0.006), (0.039, 0.043), 0.005, (237, 240, 244)),
    *drawn(ring((0.0392, 0.037), (0.0400, 0.0436), 0.0055, (205, 214, 226))),
)

_BASKET = (
    box((-0.084, -0.079, 0.004), (0.085, 0.079, 0.022), (112, 72, 40)),
    box((-0.084, -0.079, 0.022), (-0.071, 0.079, 0.146), (139, 92, 52)),
    box((0.071, -0.079, 0.022), (0.085, 0.079, 0.146), (139, 92, 52)),
    box((-0.071, -0.079, 0.022), (0.071, -0.066, 0.146), (139, 92, 52)),
    box((-0.071, 0.066, 0.022), (0.071, 0.079, 0.146), (139, 92, 52)),
    *(
        box((-0.0846, -0.0796, z), (0.0856, -0.0654, z + 0.010), (176, 124, 74), collides=False)
        for z in (0.045, 0.075, 0.105, 0.135)
    ),
    *(
        box((-0.0846, 0.0654, z), (0.0856, 0.0796, z + 0.010), (176, 124, 74), collides=False)
        for z in (0.045, 0.075, 0.105, 0.135)
    ),
    *(
        box((x, -0.0796, z), (x + 0.0142, 0.0796, z + 0.010), (176, 124, 74), collides=False)
        for z in (0.045, 0.075, 0.105, 0.135)
        for x in (-0.0846, 0.0714)
    ),
)

_WINE_BOTTLE = (
    *disk(0.0215, 0.001, 0.065, (18, 40, 22)),
    *disk(0.0200, 0.065, 0.080, (18, 40, 22)),
    *disk(0.0140, 0.080, 0.100, (18, 40, 22)),
    *disk(0.0080, 0.100, 0.148, (18, 40, 22)),
    *disk(0.0075, 0.148, 0.158, (228, 173, 108)),
    band(0.0219, 0.018, 0.052, (248, 242, 223)),
)

_BBQ_SAUCE = (
    box((-0.024, -0.015, -0.055), (0.024, 0.015, 0.010), (70, 17, 2)),
    box((-0.016, -0.012, 0.010), (0.016, 0.012, 0.034), (70, 17, 2)),
    *disk(0.010, 0.034, 0.052, (225, 210, 180)),
    box((-0.0244, -0.0154, -0.042), (0.0244, 0.0154, -0.006), (148, 45, 12), collides=False),
)

_MOKA_POT = (
    *disk(0.041, -0.066, -0.005, (190, 190, 192)),
    *disk(0.029, -0.005, 0.012, (150, 150, 154)),
    *disk(0.037, 0.012, 0.062, (205, 205, 206)),
    *disk(0.022, 0.062, 0.074, (190, 190, 192)),
    *disk(0.007, 0.074, 0.086, _BLACK),
    box((-0.008, -0.056, 0.038), (0.008, -0.030, 0.062), (205, 205, 206)),
    box((-0.007, 0.030, 0.048), (0.007, 0.091, 0.060), _BLACK),
    box((-0.007, 0.079, -0.020), (0.007, 0.091, 0.048), _BLACK),
)

_FRYPAN = (
    *disk(0.090, 0.001, 0.013, (62, 64, 62), sides=12),
    *ring((0.088, 0.010), (0.0945, 0.059), 0.004, (41, 43, 40), sides=16),
    box((0.094, -0.010, 0.038), (0.259, 0.010, 0.052), (24, 24, 24)),
    band(0.080, 0.013, 0.0134, (84, 86, 86)),
)

_BOOK = (
    box((-0.015, -0.067, 0.002), (0.014, 0.043, 0.137), _BLACK),
    box((-0.0115, -0.066, 0.0015), (0.0105, 0.0434, 0.1374), (237, 234, 231), collides=False),
    box((-0.0154, -0.050, 0.080), (0.0144, 0.026, 0.100), (196, 160, 70), collides=False),
)

_STACKED = (-0.06, 0.04, 0.025)

MOVABLES: dict[str, Movable] = {
    "akita_black_bowl": Movable(SCANNED, 5.6, _STACKED, _BOWL),
    "plate": Movable(SCANNED, 11.5, _STACKED, _PLATE),
    "glazed_rim_porcelain_ramekin": Movable(SCANNED, 9.7, _STACKED, _RAMEKIN),
    "cookies": Movable(HOPE, 9.6, _STACKED, _packet((0.031, 0.041, 0.009), (150, 48, 14), (222, 196, 140))),
    "cream_cheese": Movable(
        HOPE, 6.2, (-0.025, 0.025, 0.03), _packet((0.041, 0.021, 0.009), (186, 196, 214), (54, 58, 120))
    ),
    "wine_bottle": Movable(TURBOSQUID, 15.4, _STACKED, _WINE_BOTTLE),
    "basket": Movable(
        SCANNED,
        136.1,
        _STACKED,
        _BASKET,
        (Region("contain_region", (0.0611, 0.0611, 0.0695), (0.0, 0.0, 0.0718), (0.0, 0.0, 0.0, 1.0)),),
    ),
    "alphabet_soup": Movable(HOPE, 25.9, (-0.04, 0.04, 0.025), _can((97, 105, 150), (190, 90, 30))),
    "tomato_sauce": Movable(HOPE, 26.6, _STACKED, _can((58, 104, 70), (196, 50, 20))),
    "ketchup": Movable(HOPE, 23.2, _STACKED, _bottle((190, 40, 8), (235, 225, 220), (240, 240, 238))),
    "salad_dressing": Movable(HOPE, 21.8, _STACKED, _bottle((188, 192, 170), (20, 100, 50), (30, 60, 34))),
    "bbq_sauce": Movable(HOPE, 12.2, (-0.06, 0.06, 0.015), _BBQ_SAUCE),
    "milk": Movable(
        HOPE, 31.7, (-0.06, 0.04, 0.03), _carton(0.0265, (-0.070, 0.061), (226, 222, 218), (126, 38, 20), (126, 38, 20))
    ),
    "orange_juice": Movable(
        HOPE, 31.7, _STACKED, _carton(0.0265, (-0.070, 0.061), (238, 146, 22), (62, 130, 50), (250, 220, 80))
    ),
    "butter": Movable(HOPE, 5.2, (-0.02, 0.02, 0.02), _packet((0.038, 0.020, 0.009), (236, 208, 110), (190, 66, 24))),
    "chocolate_pudding": Movable(HOPE, 10.2, _STACKED, _packet((0.0405, 0.023, 0.0135), (150, 168, 192), (70, 34, 20))),
    "porcelain_mug": Movable(
        TURBOSQUID,
        16.5,
        _STACKED,
        _mug(
            x=0.013,
            inner=(0.036, 0.040),
            heights=(0.002, 0.010, 0.108),
            wall=0.007,
            handle=(-0.065, -0.030),
            colours=(_WHITE, (226, 228, 232)),
        ),
    ),
    "white_yellow_mug": Movable(
        TURBOSQUID,
        30.9,
        _STACKED,
        _mug(
            x=-0.018,
            inner=(0.034, 0.045),
            heights=(0.0, 0.010, 0.103),
            wall=0.008,
            handle=(0.068, 0.028),
            colours=(_WHITE, (236, 196, 40)),
        ),
    ),
    "red_coffee_mug": Movable(
        TURBOSQUID,
        29.4,
        _STACKED,
        _mug(
            x=-0.016,
            inner=(0.030, 0.038),
            heights=(-0.002, 0.010, 0.131),
            wall=0.008,
            handle=(0.062, 0.024),
            colours=((186, 28, 24), (150, 20, 18)),
        ),
    ),
    "moka_pot": Movable(TURBOSQUID, 68.2, _STACKED, _MOKA_POT),
    "chefmate_8_frypan": Movable(SCANNED, 50.2, _STACKED, _FRYPAN),
    "black_book": Movable(TURBOSQUID, 42.5, _STACKED, _BOOK),
}
