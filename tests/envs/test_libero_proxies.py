"""The stand-ins have the size, mass, sites and joints of what they stand for. Needs no simulator."""

import math
import xml.etree.ElementTree as ET
from pathlib import PurePosixPath

import numpy as np
import pytest

from vla_rl.envs.libero.proxy.arenas import ARENAS
from vla_rl.envs.libero.proxy.fixtures import FIXTURES
from vla_rl.envs.libero.proxy.generate import proxy_files
from vla_rl.envs.libero.proxy.movables import MOVABLES
from vla_rl.envs.libero.proxy.shapes import about, disk, multiply, ring, rotate

# Axis-aligned bounds of the originals' collision geometry, metres, and their mass, grams; read from compiled models.
ORIGINALS = {
    "akita_black_bowl": ((-0.054, -0.054, 0.002), (0.053, 0.053, 0.052), 5.6),
    "plate": ((-0.068, -0.068, -0.003), (0.070, 0.069, 0.016), 11.5),
    "glazed_rim_porcelain_ramekin": ((-0.045, -0.044, 0.001), (0.045, 0.045, 0.043), 9.7),
    "cookies": ((-0.031, -0.041, -0.009), (0.031, 0.041, 0.009), 9.6),
    "cream_cheese": ((-0.041, -0.021, -0.009), (0.041, 0.021, 0.009), 6.2),
    "wine_bottle": ((-0.021, -0.022, 0.001), (0.022, 0.022, 0.158), 15.4),
    "basket": ((-0.084, -0.079, 0.004), (0.085, 0.079, 0.146), 136.1),
    "alphabet_soup": ((-0.031, -0.039, -0.035), (0.031, 0.038, 0.028), 25.9),
    "tomato_sauce": ((-0.031, -0.039, -0.034), (0.031, 0.038, 0.028), 26.6),
    "ketchup": ((-0.028, -0.072, -0.018), (0.029, 0.073, 0.019), 23.2),
    "salad_dressing": ((-0.027, -0.073, -0.018), (0.025, 0.073, 0.018), 21.8),
    "bbq_sauce": ((-0.024, -0.015, -0.055), (0.024, 0.015, 0.052), 12.2),
    "milk": ((-0.026, -0.070, -0.026), (0.027, 0.061, 0.026), 31.7),
    "orange_juice": ((-0.027, -0.070, -0.026), (0.026, 0.061, 0.026), 31.7),
    "butter": ((-0.038, -0.020, -0.009), (0.038, 0.020, 0.009), 5.2),
    "chocolate_pudding": ((-0.041, -0.023, -0.013), (0.040, 0.023, 0.014), 10.2),
    "porcelain_mug": ((-0.065, -0.049, 0.002), (0.060, 0.047, 0.108), 16.5),
    "white_yellow_mug": ((-0.071, -0.053, 0.000), (0.068, 0.053, 0.103), 30.9),
    "red_coffee_mug": ((-0.061, -0.047, -0.002), (0.062, 0.046, 0.131), 29.4),
    "moka_pot": ((-0.041, -0.056, -0.066), (0.041, 0.091, 0.086), 68.2),
    "chefmate_8_frypan": ((-0.097, -0.103, 0.001), (0.259, 0.101, 0.059), 50.2),
    "black_book": ((-0.015, -0.067, 0.002), (0.014, 0.043, 0.137), 42.5),
}
FIXTURE_JOINTS = {
    "wooden_cabinet": ["top_level", "middle_level", "bottom_level"],
    "white_cabinet": ["top_level", "middle_level", "bottom_level"],
    "flat_stove": ["button"],
    "microwave": ["microjoint"],
    "wine_rack": [],
    "desk_caddy": [],
}
FIXTURE_SITES = {
    "wooden_cabinet": {"top_side", "top_region", "middle_region", "bottom_region"},
    "white_cabinet": {"top_side", "top_region", "middle_region", "bottom_region"},
    "flat_stove": {"cook_region", "burner"},
    "microwave": {"top_side", "heating_region"},
    "wine_rack": {"top_region"},
    "desk_caddy": {"left_contain_region", "right_contain_region", "back_contain_region", "front_contain_region"},
}
FILES = proxy_files()


def parsed(name):
    (path,) = (path for path in FILES if path.name == f"{name}.xml")
    return ET.fromstring(FILES[path])


def numbers(element, key, default=()):
    return np.array([float(word) for word in element.get(key, "").split()] or default)


def corners(geom):
    w, x, y, z = numbers(geom, "quat", (1.0, 0.0, 0.0, 0.0))
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
    return numbers(geom, "pos") + (signs * numbers(geom, "size")) @ turn.T


def collision_geoms(name):
    return [geom for geom in parsed(name).iter("geom") if geom.get("group") == "0"]


def test_all_twenty_two_objects_and_six_fixtures_have_a_stand_in():
    assert set(MOVABLES) == set(ORIGINALS)
    assert set(FIXTURES) == set(FIXTURE_JOINTS)
    assert len(ARENAS) == 5


@pytest.mark.parametrize("name", ORIGINALS)
def test_an_object_is_as_large_as_its_original_within_fifteen_percent(name):
    low, high, _ = (np.array(part) for part in ORIGINALS[name])
    points = np.concatenate([corners(geom) for geom in collision_geoms(name)])
    tolerance = 0.15 * (high - low)
    assert (np.abs(points.min(axis=0) - low) <= tolerance).all(), points.min(axis=0)
    assert (np.abs(points.max(axis=0) - high) <= tolerance).all(), points.max(axis=0)


@pytest.mark.parametrize("name", ORIGINALS)
def test_an_object_weighs_what_its_original_weighs(name):
    grams = sum(float(geom.get("mass")) for geom in collision_geoms(name)) * 1000.0
    assert grams == pytest.approx(ORIGINALS[name][2], rel=1e-6)


@pytest.mark.parametrize("name", [*MOVABLES, *FIXTURES])
def test_what_is_seen_neither_collides_nor_weighs_and_every_geom_names_its_group(name):
    for geom in parsed(name).iter("geom"):
        assert geom.get("group") in ("0", "1")
        if geom.get("group") == "1":
            assert (geom.get("contype"), geom.get("conaffinity"), geom.get("mass")) == ("0", "0", "0")


@pytest.mark.parametrize("name", [*MOVABLES, *FIXTURES])
def test_the_placement_sites_are_children_of_the_outer_body(name):
    outer = parsed(name).find("./worldbody/body")
    assert {site.get("name") for site in outer.findall("site")} == {
        "bottom_site",
        "top_site",
        "horizontal_radius_site",
    }
    assert outer.find("./body[@name='object']") is not None


@pytest.mark.parametrize("name", FIXTURES)
def test_a_fixture_has_the_joints_in_order_and_the_regions_that_goals_name(name):
    inner = parsed(name).find("./worldbody/body/body")
    assert [joint.get("name") for joint in inner.iter("joint")] == FIXTURE_JOINTS[name]
    assert {site.get("name") for site in inner.iter("site")} == FIXTURE_SITES[name]


@pytest.mark.parametrize("name", FIXTURES)
def test_bodies_with_regions_come_before_bodies_without(name):
    bodies = list(parsed(name).find("./worldbody/body").iter("body"))[1:]
    has_region = [body.find(".//site") is not None for body in bodies]
    last = max(index for index, found in enumerate(has_region) if found)
    assert all(has_region[: last + 1])


def test_the_basket_is_open_above_and_holds_what_the_original_holds():
    inside = [corners(geom) for geom in collision_geoms("basket")]
    top_of_floor = min(points[:, 2].max() for points in inside)
    assert top_of_floor == pytest.approx(0.022, abs=1e-6)
    for points in inside:
        low, high = points.min(axis=0), points.max(axis=0)
        free = np.array([0.066, 0.060])
        blocks = (low[:2] < free).all() and (high[:2] > -free).all()
        assert not blocks or high[2] <= 0.022 + 1e-6


@pytest.mark.parametrize("name", ARENAS)
def test_an_arena_has_the_names_that_libero_looks_up_and_no_shadows(name):
    root = parsed(name)
    textures = {texture.get("name"): texture for texture in root.iter("texture")}
    for texture in ("texplane", "tex-wall"):
        assert PurePosixPath(textures[texture].get("file")).parent == PurePosixPath("../textures")
    lights = list(root.iter("light"))
    assert lights
    assert all(light.get("castshadow") == "false" for light in lights)
    assert all(float(material.get("reflectance", "0")) == 0.0 for material in root.iter("material"))


def test_the_same_tables_give_the_same_bytes():
    assert proxy_files() == FILES


def test_textures_are_png_files_of_a_few_bytes():
    pictures = {path: content for path, content in FILES.items() if path.suffix == ".png"}
    assert len(pictures) == 5
    for content in pictures.values():
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert len(content) < 1000


def test_a_quarter_turn_about_z_takes_x_to_y_and_turns_compose():
    assert rotate(about("z", math.pi / 2), (1.0, 0.0, 0.0)) == pytest.approx((0.0, 1.0, 0.0))
    half = multiply(about("x", math.pi / 2), about("x", math.pi / 2))
    assert rotate(half, (0.0, 0.0, 1.0)) == pytest.approx((0.0, 0.0, -1.0))


def test_a_disk_of_eight_sides_reaches_its_radius_and_no_corner_sticks_out():
    boxes = [shape for shape in disk(0.1, 0.0, 0.02, (0, 0, 0)) if shape.collides]
    assert len(boxes) == 4
    for box in boxes:
        assert box.size[0] == pytest.approx(0.1)
        # The corner of a regular octagon with inradius r is r / cos(22.5 degrees) from its centre.
        assert math.hypot(box.size[0], box.size[1]) == pytest.approx(0.1 / math.cos(math.pi / 8))


def test_a_ring_leaves_the_stated_inner_radius_free():
    for box in ring((0.03, 0.0), (0.03, 0.05), 0.004, (0, 0, 0), sides=12):
        distance = math.hypot(box.pos[0], box.pos[1])
        assert distance - box.size[0] == pytest.approx(0.03)
        assert box.pos[2] == pytest.approx(0.025)
