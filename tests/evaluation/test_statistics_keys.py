"""Which data set's statistics scale a policy's actions: named once, then known by the run and its exports."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vla_rl.cli.main import app
from vla_rl.evaluation.policy_source import find_policy
from vla_rl.export.policy_export import export
from vla_rl.learner.checkpoint import Progress, kept_for_the_run, save
from vla_rl.learner.engine import Engine
from vla_rl.policies.openvla_oft.checkpoint_writer import write_checkpoint
from vla_rl.policies.openvla_oft.dataset_statistics import select_statistics, stored_blocks
from vla_rl.policies.openvla_oft.source import find_checkpoint
from vla_rl.recipe import build_recipe
from vla_rl.rl.optimizer_section import OptimizerSection
from vla_rl.run.plan import plan_policy
from vla_rl.run.statistics_key import check_statistics

RECIPE = """
name: small
env: {name: libero, suite: libero_goal, tasks: [3]}
policy: {name: openvla_oft, lora: {rank: 2}}
surrogate: {name: gipo}
budget: {optimizer_steps: 10}
"""
ONE, OTHER = "libero_90_no_noops_trajall", "libero_4_task_suites_no_noops"


def block(high):
    return {
        "action": {"q01": [-1.0] * 7, "q99": [high] * 7},
        "proprio": {"q01": [0.0] * 8, "q99": [1.0] * 8},
    }


def known(*files):
    return [stored_blocks({key: block(high) for key, high in file.items()}, "place: ") for file in files]


def chosen(files, suite="libero_goal", key=None):
    return select_statistics(known(*files), suite, key=key, action_dim=7, proprio_dim=8).key


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([{"libero_goal": 2.0, "libero_goal_no_noops": 3.0}, {}], "libero_goal"),
        ([{"libero_goal_no_noops": 3.0, "libero_10_no_noops": 2.0}, {}], "libero_goal_no_noops"),
        ([{ONE: 2.0}, {}], ONE),
        ([{"my_robot": 2.0}, {"bridge_orig": 1.0, "kuka": 1.0}], "my_robot"),
        ([{}, {ONE: 2.0}], ONE),
        ([{ONE: 2.0, "_source": 1.0}, {}], ONE),
        ([{ONE: 2.0}, {"libero_goal_no_noops": 1.0}], ONE),  # the original code forgets norm_stats too
    ],
)
def test_the_suite_s_own_statistics_are_taken_or_the_only_ones(files, expected):
    assert chosen(files) == expected


@pytest.mark.parametrize(
    ("files", "listed"),
    [
        ([{ONE: 2.0, OTHER: 3.0}, {}], f"{OTHER}, {ONE}"),
        ([{}, {"bridge_orig": 1.0}], "bridge_orig"),  # pre-training on another robot, left there by every fine-tuning
        (
            [{"my_robot": 2.0}, {"libero_goal_no_noops": 1.0}, {}],
            "my_robot; from its base: libero_goal_no_noops",
        ),  # the base's own
    ],
)
def test_where_several_could_be_meant_they_are_listed_with_what_to_type(files, listed):
    with pytest.raises(ValueError, match=f"the checkpoint has: {listed}. Say which was trained on: policy.statistics="):
        chosen(files)
    for key in listed.replace("; from its base:", ",").split(", "):
        assert chosen(files, key=key) == key


def test_a_checkpoint_without_statistics_is_told_what_to_copy():
    with pytest.raises(ValueError, match=r"has: none\. Copy dataset_statistics\.json"):
        chosen([{}, {}])


def test_the_first_file_that_knows_a_key_counts():
    statistics = select_statistics(known({ONE: 2.0}, {ONE: 9.0}), "libero_goal", action_dim=7, proprio_dim=8)
    assert statistics.action.q99.tolist() == [2.0] * 7


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("statistics") / "checkpoint"
    folder.mkdir()
    recipe = build_recipe(RECIPE, ["policy.image_size=28", "policy.lora=null"])
    write_checkpoint(plan_policy(recipe.setup).build(device="cpu"), folder, step=0)
    (folder / "dataset_statistics.json").write_text(json.dumps({ONE: block(2.0), OTHER: block(3.0)}))
    return folder


@pytest.fixture
def checkpoint(original, tmp_path):
    return shutil.copytree(original, tmp_path / "checkpoint")


@pytest.fixture
def run(checkpoint, tmp_path):
    """The folder of a run whose recipe names the key."""
    recipe = build_recipe(RECIPE, [f"policy.checkpoint={checkpoint}", f"policy.statistics={OTHER}"])
    plan = plan_policy(recipe.setup)
    settings = OptimizerSection(policy_lr=0.0, value_lr=0.0, schedule="constant")
    policy = plan.build(device="cpu")
    engine = Engine(policy, strategy="single", zero_stage=2, precision="fp32", device="cpu", optimizer=settings)
    extra = {"statistics": plan.statistics}
    save(tmp_path / "run", engine, progress=Progress(7, 0, 0, 0, 0, 0), extra=extra, writers={}, keep=1)
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.dump_yaml(), encoding="utf-8")
    return tmp_path / "run"


def test_a_recipe_s_key_scales_the_actions(checkpoint):
    for key, high in ((ONE, 2.0), (OTHER, 3.0)):
        recipe = build_recipe(RECIPE, [f"policy.checkpoint={checkpoint}", f"policy.statistics={key}"])
        plan = plan_policy(recipe.setup)
        assert plan.statistics == key
        assert f"statistics {key}" in plan.text
        assert plan.build(device="cpu", empty=True).statistics.action.q99.tolist() == [high] * 7


def test_train_and_eval_say_what_to_type_and_take_it(checkpoint, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("openvla_oft,", f"openvla_oft, checkpoint: {checkpoint},"))
    verbs = {
        "policy.statistics=": ["train", str(tmp_path / "recipe.yaml"), "--dry-run"],
        "--statistics ": ["eval", str(checkpoint), "--suite", "libero_goal", "--out", str(tmp_path / "eval")],
    }
    for option, verb in verbs.items():
        refused = CliRunner().invoke(app, verb)
        assert refused.exit_code == 2
        assert f"{option}{OTHER}" in refused.stderr
        again = CliRunner().invoke(app, [*verb, *f"{option}nothing".split()])
        assert again.exit_code == 2
        assert "no normalisation statistics 'nothing'" in again.stderr


def test_an_export_of_a_run_knows_the_key(run, tmp_path):
    export(run, out=tmp_path / "export", verify=2)
    assert json.loads((tmp_path / "export" / "vla_rl.json").read_text())["statistics"] == OTHER
    source = find_checkpoint(tmp_path / "export", profile="auto")
    assert source.dataset_statistics("libero_spatial").action.q99.tolist() == [3.0] * 7
    assert source.dataset_statistics("libero_spatial", ONE).key == ONE  # unless another is asked for
    export(tmp_path / "export", out=tmp_path / "again", verify=0)
    assert json.loads((tmp_path / "again" / "vla_rl.json").read_text())["statistics"] == OTHER


def test_an_export_of_a_run_with_its_suite_s_own_statistics_records_none(run, checkpoint, tmp_path):
    """A checkpoint of several suites is scaled by those of the suite that it is evaluated in."""
    (checkpoint / "dataset_statistics.json").write_text(
        json.dumps({"libero_goal_no_noops": block(2.0), "libero_10_no_noops": block(3.0)})
    )
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace(f"statistics: {OTHER}", "statistics: null"))
    export(run, out=tmp_path / "export", verify=0)
    assert "statistics" not in json.loads((tmp_path / "export" / "vla_rl.json").read_text())


def test_a_run_says_its_key_itself(run):
    assert find_policy(str(run), profile="auto").policy.statistics == OTHER
    assert find_policy(str(run), profile="auto", statistics=OTHER).policy.statistics == OTHER
    with pytest.raises(ValueError, match=f"--statistics: found {ONE}, but .* trained with policy.statistics={OTHER}"):
        find_policy(str(run), profile="auto", statistics=ONE)


def test_another_key_is_another_policy(checkpoint):
    sources = [find_policy(str(checkpoint), profile="auto", statistics=key) for key in (None, ONE, OTHER)]
    assert [source.policy.statistics for source in sources] == [None, ONE, OTHER]
    assert len({source.fingerprint for source in sources}) == 3


def test_a_policy_without_statistics_takes_no_key(trained):
    with pytest.raises(ValueError, match="--statistics: the policy 'mlp' has none"):
        find_policy(str(trained), profile="auto", statistics=ONE)
    (checkpoint,) = (trained / "checkpoints").glob("optimizer_step_*")
    assert kept_for_the_run(checkpoint)["statistics"] is None


def test_a_run_does_not_go_on_with_other_statistics(run, checkpoint):
    recipe = build_recipe(RECIPE, [f"policy.checkpoint={checkpoint}", f"policy.statistics={ONE}"])
    plan, saved = plan_policy(recipe.setup), next((run / "checkpoints").glob("optimizer_step_*"))
    recorded = kept_for_the_run(saved)["statistics"]
    assert recorded == OTHER
    with pytest.raises(ValueError, match=f"continue with policy.statistics={OTHER}"):
        check_statistics(plan, Path(saved), recorded)
    check_statistics(plan, Path(saved), ONE)
    check_statistics(plan, Path(saved), None)  # of an older version
