"""Conversion of tables of primitives to MJCF, in the structure that LIBERO's object and arena classes read.

An object is `worldbody > body > body "object"`, with the three placement sites in the unnamed outer body. Geoms in
group 0 collide and have mass, geoms in group 1 are visible; every geom names its group. LIBERO prefixes every name with
the instance's name.
"""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterable

from vla_rl.envs.libero.proxy.arenas import Arena
from vla_rl.envs.libero.proxy.fixtures import Body, Fixture
from vla_rl.envs.libero.proxy.movables import Movable, Region
from vla_rl.envs.libero.proxy.shapes import NO_TURN, Colour, Shape

# Contact parameters of the originals. The microwave's geoms collide with everything except each other.
CONTACT: dict[str, dict[str, str]] = {
    "standard": {
        "friction": "0.95 0.3 0.1",
        "solref": "0.001 1",
        "solimp": "0.998 0.998 0.001",
        "density": "100",
    },
    "microwave": {
        "contype": "0",
        "conaffinity": "1",
        "friction": "1 0.005 0.0001",
        "margin": "0.001",
        "solref": "0.02 1",
        "solimp": "0.8 0.9 0.01",
        "density": "100",
    },
}
_TILE = 64  # pixels per side of a generated texture


def movable_xml(name: str, movable: Movable) -> bytes:
    """Return the file of an object; LIBERO adds its free joint."""
    root, inner = _object_file(name, movable.sites)
    total = sum(shape.volume for shape in movable.shapes if shape.collides)
    for shape in movable.shapes:
        collision = _collision(inner, shape, CONTACT["standard"])
        if collision is not None:
            del collision.attrib["density"]
            collision.set("mass", _number(movable.grams / 1000.0 * shape.volume / total))
        _visual(inner, shape)
    for region in movable.regions:
        _region(inner, region)
    return _serialise(root)


def fixture_xml(name: str, fixture: Fixture) -> bytes:
    """Return the file of a fixture; LIBERO welds it to the world."""
    root, inner = _object_file(name, fixture.sites)
    _fill(inner, fixture.root, CONTACT[fixture.contact])
    return _serialise(root)


def arena_xml(name: str, arena: Arena) -> bytes:
    """Return the file of a room. LIBERO adds the cameras; the lights cast no shadow."""
    root = ET.Element("mujoco", model=name)
    assets = ET.SubElement(root, "asset")
    ET.SubElement(
        assets,
        "texture",
        type="skybox",
        builtin="gradient",
        rgb1="0.9 0.9 1",
        rgb2="0.2 0.3 0.4",
        width="64",
        height="64",
    )
    for texture, material, repeat in (("texplane", "floorplane", "3 3"), ("tex-wall", "walls", "2 2")):
        ET.SubElement(assets, "texture", name=texture, type="2d", file="../textures/light-gray-plaster.png")
        ET.SubElement(
            assets,
            "material",
            name=material,
            texture=texture,
            texrepeat=repeat,
            texuniform="true",
            specular="0",
            shininess="0",
        )
    world = ET.SubElement(root, "worldbody")
    floor = ET.SubElement(world, "body", name="floor") if arena.floor_body else world
    ET.SubElement(
        floor, "geom", name="floor", type="plane", size="3 3 .125", condim="3", group="1", material="floorplane"
    )
    _walls(world)
    _table(world, arena)
    for shape in arena.background:
        _visual(world, shape)
    for index, place in enumerate(("1 1 4", "-3 -3 4", "1 -1 3")):
        ET.SubElement(
            world, "light", name=f"light{index + 1}", pos=place, dir="0 -0.15 -1", diffuse="0.8 0.8 0.8",
            specular="0.2 0.2 0.2", directional="false", castshadow="false",
        )  # fmt: skip
    return _serialise(root)


def tile_png(colour: Colour, *, joints: bool) -> bytes:
    """Return a small texture: one colour, with joints along two edges if it is a tiled floor."""
    base = bytes(colour[:3])
    joint = bytes(int(0.86 * channel) for channel in colour[:3])
    rows = []
    for row in range(_TILE):
        line = [joint if joints and (row < 2 or column < 2) else base for column in range(_TILE)]
        rows.append(b"\0" + b"".join(line))
    header = struct.pack(">IIBBBBB", _TILE, _TILE, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _png_chunk(b"IHDR", header)
        + _png_chunk(b"IDAT", zlib.compress(b"".join(rows), 9))
        + _png_chunk(b"IEND", b"")
    )


def _object_file(name: str, sites: tuple[float, float, float]) -> tuple[ET.Element, ET.Element]:
    root = ET.Element("mujoco", model=name)
    outer = ET.SubElement(ET.SubElement(root, "worldbody"), "body")
    inner = ET.SubElement(outer, "body", name="object")
    bottom, top, radius = sites
    for site, place in (
        ("bottom_site", (0.0, 0.0, bottom)),
        ("top_site", (0.0, 0.0, top)),
        ("horizontal_radius_site", (radius, radius, 0.0)),
    ):
        ET.SubElement(outer, "site", name=site, pos=_numbers(place), size="0.005", rgba="0 0 0 0")
    return root, inner


def _fill(body: ET.Element, part: Body, contact: dict[str, str]) -> None:
    if part.kilograms is not None:
        ET.SubElement(body, "inertial", pos="0 0 0", mass=_number(part.kilograms), diaginertia="1 1 1")
    if part.joint is not None:
        ET.SubElement(
            body, "joint", name=part.joint.name, type=part.joint.kind, axis=_numbers(part.joint.axis), limited="true",
            range=_numbers(part.joint.range), damping=_number(part.joint.damping),
        )  # fmt: skip
    for region in part.regions:
        _region(body, region)
    if part.lamp:
        ET.SubElement(
            body, "site", name="burner", type="cylinder", pos="0 0 0.022", size="0.0625 0.0005", rgba="0.9 0.05 0.05 1"
        )
    for shape in part.shapes:
        _collision(body, shape, contact)
        _visual(body, shape)
    for child in part.parts:
        element = ET.SubElement(body, "body", name=child.name, pos=_numbers(child.pos), quat=_numbers(child.quat))
        _fill(element, child, contact)


def _collision(body: ET.Element, shape: Shape, contact: dict[str, str]) -> ET.Element | None:
    if not shape.collides:
        return None
    return ET.SubElement(body, "geom", {**_placed(shape), **contact, "group": "0", "rgba": "0.8 0.8 0.8 0"})


def _visual(body: ET.Element, shape: Shape) -> None:
    if shape.visible:
        silent = {"contype": "0", "conaffinity": "0", "group": "1", "mass": "0"}
        ET.SubElement(body, "geom", {**_placed(shape), **silent, "rgba": _rgba(shape.colour)})


def _region(body: ET.Element, region: Region) -> None:
    ET.SubElement(
        body, "site", name=region.name, type="box", pos=_numbers(region.pos), quat=_numbers(region.quat),
        size=_numbers(region.half), rgba="0.8 0.8 0.8 0",
    )  # fmt: skip


def _walls(world: ET.Element) -> None:
    """Add visual walls of a room of 5 x 6 m and 3 m height around the origin."""
    for name, pos, size in (
        ("rear", "-2 0 1.5", "0.01 3 1.5"),
        ("front", "3 0 1.5", "0.01 3 1.5"),
        ("left", "0.5 3 1.5", "2.5 0.01 1.5"),
        ("right", "0.5 -3 1.5", "2.5 0.01 1.5"),
    ):
        ET.SubElement(
            world, "geom", name=f"wall_{name}_visual", type="box", pos=pos, size=size, contype="0", conaffinity="0",
            group="1", material="walls",
        )  # fmt: skip


def _table(world: ET.Element, arena: Arena) -> None:
    if arena.sized_table:
        table = ET.SubElement(world, "body", name="table")
        ET.SubElement(table, "geom", name="table_collision", type="box", size="0.4 0.4 0.4", group="0")
        silent = {"contype": "0", "conaffinity": "0", "group": "1", "rgba": _rgba(arena.surface)}
        ET.SubElement(table, "geom", {"name": "table_visual", "type": "box", "size": "0.4 0.4 0.4", **silent})
        ET.SubElement(table, "site", name="table_top", size="0.001", rgba="0 0 0 0")
        for leg in range(1, 5):
            ET.SubElement(
                table, "geom", {"name": f"table_leg{leg}_visual", "type": "cylinder", "size": "0.05 0.1", **silent}
            )
    if arena.table is not None:
        name, shapes = arena.table
        _fill(ET.SubElement(world, "body", name=name), Body(name=name, shapes=shapes), CONTACT["standard"])


def _placed(shape: Shape) -> dict[str, str]:
    attributes = {"type": shape.kind, "pos": _numbers(shape.pos), "size": _numbers(shape.size)}
    if shape.quat != NO_TURN:
        attributes["quat"] = _numbers(shape.quat)
    return attributes


def _rgba(colour: Colour) -> str:
    alpha = colour[3] if len(colour) == 4 else 1.0
    return _numbers((*(channel / 255.0 for channel in colour[:3]), alpha))


def _number(value: float) -> str:
    return f"{value:.9g}"


def _numbers(values: Iterable[float]) -> str:
    return " ".join(_number(value) for value in values)


def _serialise(root: ET.Element) -> bytes:
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
