"""The stand-ins beside the originals, where a copy of LIBERO's assets is at hand."""

import numpy as np
import pytest

from vla_rl.envs.libero.env import LiberoEnv
from vla_rl.libero_suites import MAIN_SUITES, SUITES

pytestmark = [pytest.mark.libero, pytest.mark.slow]

EVERY_TASK = [(suite, task_id) for suite in MAIN_SUITES for task_id in range(SUITES[suite].num_tasks)]


@pytest.fixture(scope="module", params=EVERY_TASK, ids=lambda task: f"{task[0]}-{task[1]}")
def both(request, full_assets):
    """One task with proxies and with the originals, for all tests that only look: building takes longer."""
    suite, task_id = request.param
    made = [LiberoEnv(suite, task_id, assets=assets, cameras=()) for assets in ("proxy", full_assets)]
    for env in made:
        env.reset(0)
    yield made
    for env in made:
        env.close()


def model_of(env):
    return env.simulation.env.sim.model._model


def names(model, kind):
    return [
        getattr(model, kind)(index).name for index in range(getattr(model, f"n{'jnt' if kind == 'joint' else kind}"))
    ]


def test_joints_sites_and_named_bodies_are_the_originals(both):
    proxy, full = (model_of(env) for env in both)
    assert names(proxy, "joint") == names(full, "joint")
    assert np.array_equal(proxy.jnt_type, full.jnt_type)
    assert np.allclose(proxy.jnt_range, full.jnt_range, atol=1e-6)
    assert np.allclose(proxy.dof_damping, full.dof_damping, atol=1e-6)
    assert sorted(names(proxy, "site")) == sorted(names(full, "site"))
    originals = {name for name in names(full, "body") if name} - {"living_room_table_col"}
    assert originals <= set(names(proxy, "body"))


def test_regions_stand_where_the_originals_have_them(both):
    proxy_env, full_env = both
    proxy, full = model_of(proxy_env), model_of(full_env)
    proxy_sim, full_sim = proxy_env.simulation.env.sim, full_env.simulation.env.sim
    for name in proxy_env.simulation.env.object_sites_dict:
        ours, theirs = proxy.site(name), full.site(name)
        assert np.allclose(ours.size, theirs.size, atol=1e-3), name
        assert np.allclose(proxy_sim.data.get_site_xpos(name), full_sim.data.get_site_xpos(name), atol=0.02), name
        assert np.allclose(proxy_sim.data.get_site_xmat(name), full_sim.data.get_site_xmat(name), atol=0.02), name


def test_objects_come_to_rest_where_the_originals_do(both):
    proxy, full = both
    for name in proxy.simulation.env.objects_dict:
        ours, theirs = (env.simulation.env.sim.data.get_joint_qpos(f"{name}_joint0") for env in (proxy, full))
        assert np.allclose(ours[:3], theirs[:3], atol=0.015), (name, ours[:3] - theirs[:3])
        assert abs(np.dot(ours[3:], theirs[3:])) > 0.98, name


def test_an_object_is_as_large_as_its_original_within_fifteen_percent(both):
    for name in both[0].simulation.env.objects_dict:
        assert_as_large(both, f"{name}_main")


FIXTURES = {
    ("libero_goal", 0): [
        "wooden_cabinet_1_base",
        "wooden_cabinet_1_cabinet_top",
        "wooden_cabinet_1_cabinet_middle",
        "wooden_cabinet_1_cabinet_bottom",
        "flat_stove_1_burner",
        "flat_stove_1_button",
        "wine_rack_1_main",
    ],
    ("libero_10", 3): [
        "white_cabinet_1_base",
        "white_cabinet_1_cabinet_top",
        "white_cabinet_1_cabinet_middle",
        "white_cabinet_1_cabinet_bottom",
    ],
    ("libero_10", 9): ["microwave_1_main", "microwave_1_microdoorroot"],
    ("libero_10", 5): ["desk_caddy_1_main"],
}


@pytest.mark.parametrize("both", FIXTURES, indirect=True, scope="module", ids=lambda task: f"{task[0]}-{task[1]}")
def test_a_fixture_is_as_large_as_its_original_within_fifteen_percent(both):
    for body in FIXTURES[both[0].task.suite, both[0].task.task_id]:
        assert_as_large(both, body)


def assert_as_large(both, body):
    (low, high), (true_low, true_high) = (bounds(model_of(env), body) for env in both)
    tolerance = 0.15 * (true_high - true_low)
    assert (np.abs(low - true_low) <= tolerance).all(), (body, low, true_low)
    assert (np.abs(high - true_high) <= tolerance).all(), (body, high, true_high)


def bounds(model, body):
    """Axis-aligned bounds of a body's geoms of group 0, in its own frame; the rack's shelf counts as part of it."""
    wanted = {model.body(body).id}
    if body.startswith("wine_rack"):
        wanted |= {index for index in range(model.nbody) if model.body_parentid[index] in wanted}
    points = []
    for geom in range(model.ngeom):
        if model.geom_bodyid[geom] in wanted and model.geom_group[geom] == 0:
            centre, half = model.geom_aabb[geom][:3], model.geom_aabb[geom][3:]
            signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
            w, x, y, z = model.geom_quat[geom]
            turn = np.array(
                [
                    [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                    [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                    [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
                ]
            )
            points.append(model.geom_pos[geom] + (centre + signs * half) @ turn.T)
    stacked = np.concatenate(points)
    return stacked.min(axis=0), stacked.max(axis=0)
