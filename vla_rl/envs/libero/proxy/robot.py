"""Simplified visuals of the robot that go with proxy assets.

The visual meshes of the arm and its mount are 0.35 M vertices, three quarters of a Spatial scene. They are replaced by
30 primitives of about the same outline. Bodies, joints, collision geoms and masses are unchanged: group 1 neither
collides nor has mass in robosuite's models, and a test compares the physics with LIBERO's own, bit for bit.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

_WHITE = "0.93 0.93 0.92 1"
_GREY = "0.55 0.56 0.58 1"
_DARK = "0.22 0.22 0.23 1"


def _capsule(start: str, end: str, radius: float, colour: str = _WHITE) -> dict[str, str]:
    return {"type": "capsule", "fromto": f"{start} {end}", "size": str(radius), "rgba": colour}


def _cylinder(start: str, end: str, radius: float, colour: str = _GREY) -> dict[str, str]:
    return {"type": "cylinder", "fromto": f"{start} {end}", "size": str(radius), "rgba": colour}


def _box(centre: str, half: str, colour: str) -> dict[str, str]:
    return {"type": "box", "pos": centre, "size": half, "rgba": colour}


# Visual shapes by body of robosuite's Panda, its gripper and its mount, in the body's own frame, metres.
_LOOKS: dict[str, tuple[dict[str, str], ...]] = {
    "robot0_link0": (
        _box("-0.045 0 0.03", "0.105 0.085 0.03", _WHITE),
        _cylinder("0 0 0.05", "0 0 0.14", 0.062, _WHITE),
    ),
    "robot0_link1": (_capsule("0 0 -0.137", "0 0 -0.02", 0.055), _capsule("0 -0.074 0", "0 0 0", 0.055)),
    "robot0_link2": (_capsule("0 -0.139 0", "0 -0.02 0", 0.055), _capsule("0 0 0", "0 0 0.074", 0.055)),
    "robot0_link3": (_capsule("0 0 -0.066", "0 0 0", 0.055), _capsule("0.02 0 0", "0.082 0.056 0", 0.055)),
    "robot0_link4": (_capsule("0 0 0", "0 0 0.056", 0.055), _capsule("-0.083 0.069 0", "-0.02 0.02 0", 0.055)),
    "robot0_link5": (
        _capsule("0 0 -0.207", "0 0.01 -0.18", 0.052),
        _capsule("0 0.03 -0.17", "0 0.085 -0.02", 0.045),
        _capsule("0 0 0", "0 0.075 0", 0.050),
    ),
    "robot0_link6": (_capsule("0 0 0", "0.088 0.01 0", 0.044), _capsule("0.088 0 0.005", "0.088 0.040 0.005", 0.042)),
    "robot0_link7": (
        _cylinder("0 0 0.052", "0 0 0.107", 0.044),
        _box("0.035 0.035 0.094", "0.025 0.025 0.012", _WHITE),
    ),
    "gripper0_right_gripper": (
        _cylinder("0 0 -0.026", "0 0 0.004", 0.031, _WHITE),
        _box("0.0015 0 0.020", "0.1025 0.030 0.018", _WHITE),
        _box("0.0015 0 0.052", "0.1025 0.013 0.014", _WHITE),
    ),
    "gripper0_leftfinger": (
        _box("0 0.0155 0.010", "0.0105 0.0105 0.010", _GREY),
        _box("0 0.0075 0.037", "0.0105 0.0075 0.017", _GREY),
    ),
    "gripper0_rightfinger": (
        _box("0 -0.0155 0.010", "0.0105 0.0105 0.010", _GREY),
        _box("0 -0.0075 0.037", "0.0105 0.0075 0.017", _GREY),
    ),
    "mount0_pedestal": (
        _cylinder("-0.02 0 -0.80", "-0.02 0 -0.005", 0.13, _DARK),
        _box("-0.325 0 -0.380", "0.11 0.20 0.265", _DARK),
        _box("-0.1235 0 -0.865", "0.383 0.342 0.062", _DARK),
    ),
}
# An alpha of 0 hides a geom; robosuite looks its name up, so it must stay.
_UNSEEN = {"type": "sphere", "size": "0.001", "rgba": "0 0 0 0"}
_SILENT = {"contype": "0", "conaffinity": "0", "group": "1"}
# In software rendering the cost of a frame is that of its vertices and samples.
_QUALITY = {"offsamples": "0", "shadowsize": "0", "numslices": "16", "numstacks": "8", "numquads": "1"}
# Sides that no light reaches would be black, and the colours of objects there indistinguishable.
_HEADLIGHT = {"ambient": "0.3 0.3 0.3"}


def simplify_visuals(xml: str) -> str:
    """Return a model's XML with the robot drawn from primitives, without anti-aliasing and shadows."""
    root = ET.fromstring(xml)
    dropped: set[str] = set()
    for body in root.iter("body"):
        looks = _LOOKS.get(body.get("name", ""))
        if looks is not None:
            dropped |= _replace_meshes(body, looks)
    assets = _child(root, "asset")
    for mesh in assets.findall("mesh"):
        if mesh.get("name") in dropped:
            assets.remove(mesh)
    visual = _child(root, "visual")
    ET.SubElement(visual, "quality", _QUALITY)
    ET.SubElement(visual, "headlight", _HEADLIGHT)
    return ET.tostring(root, encoding="unicode")


def _replace_meshes(body: ET.Element, looks: tuple[dict[str, str], ...]) -> set[str]:
    """Replace a body's meshes by primitives; return the names of meshes that are no longer used."""
    dropped = set()
    for geom in body.findall("geom"):
        if geom.get("group") == "1" and geom.get("type") == "mesh":
            dropped.add(geom.attrib["mesh"])
            name = geom.attrib["name"]
            geom.attrib.clear()
            geom.attrib.update(_UNSEEN, name=name, **_SILENT)
    for number, look in enumerate(looks):
        ET.SubElement(body, "geom", look, name=f"proxy_{body.get('name')}_{number}", **_SILENT)
    return dropped


def _child(parent: ET.Element, tag: str) -> ET.Element:
    found = parent.find(tag)
    return ET.SubElement(parent, tag) if found is None else found
