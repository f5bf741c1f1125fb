"""Exported folders, what loading them refuses, and what a description says before anything starts."""

import json
import shutil
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_rl.policies.openvla_oft import OpenVLAOFT
from vla_rl.policies.openvla_oft.checkpoint_writer import write_checkpoint
from vla_rl.policies.openvla_oft.config import config_to_json, read_config
from vla_rl.policies.openvla_oft.profiles import PROFILES, ProfileName
from vla_rl.policies.openvla_oft.source import find_source
from vla_rl.policies.openvla_oft.tiny import tiny_config

BASE = {"image_size": None, "num_images": 1, "proprio": True}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, module_build):
    """A trained-looking tiny policy and the folder it was exported to."""
    policy = module_build()
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name or name == "action_rows":
                parameter.add_(0.02 * torch.sin(torch.arange(parameter.numel()).reshape(parameter.shape)))
    directory = tmp_path_factory.mktemp("export")
    write_checkpoint(policy, directory, step=7)
    return policy, directory


@pytest.fixture
def broken(exported, tmp_path):
    """A copy of the exported folder to damage."""
    directory = tmp_path / "checkpoint"
    shutil.copytree(exported[1], directory)
    return directory


@pytest.fixture
def unreadable(exported, tmp_path):
    """A copy of the exported folder whose weights are a hole in the file: descriptions read no more than its header."""
    directory = tmp_path / "checkpoint"
    shutil.copytree(exported[1], directory, ignore=shutil.ignore_patterns("model.safetensors"))
    weights = exported[1] / "model.safetensors"
    with weights.open("rb") as file, (directory / "model.safetensors").open("wb") as hollow:
        length = file.read(8)
        hollow.write(length + file.read(int.from_bytes(length, "little")))
        hollow.truncate(weights.stat().st_size)
    return directory


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


@torch.no_grad()
def test_an_exported_policy_loads_again_and_answers_the_same(exported, build, make_inputs):
    policy, directory = exported
    again = build(checkpoint=str(directory), **BASE)
    inputs = make_inputs(policy, [0, 1])
    difference = (again.network(inputs).logits - policy.network(inputs).logits).abs().max()
    assert difference <= 1e-4  # merged weights round once more
    assert (
        build().network(inputs).logits - policy.network(inputs).logits
    ).abs().max() > 1e-2  # training had changed something


def test_an_exported_folder_has_every_published_name_and_no_critic(exported):
    _, directory = exported
    tensors = load_file(directory / "model.safetensors")
    # DINOv2: 5 and two blocks of 14; SigLIP: 3 and two of 12; projector 6; Llama: 3 and three layers of 9; 43 unused.
    assert len(tensors) == (5 + 28) + (3 + 24) + 6 + (3 + 27) + 43
    assert not any("lora" in name or "value" in name for name in tensors)


def test_only_the_action_rows_of_lm_head_change_on_export(exported, build):
    before, after = build().model, OpenVLAOFT.from_pretrained(exported[1])
    changed = (before.language_model.lm_head.weight != after.language_model.lm_head.weight).any(dim=1)
    assert changed.nonzero().flatten().tolist() == list(range(31744, 32000))
    embeddings = [model.language_model.model.embed_tokens.weight for model in (before, after)]
    assert torch.equal(*embeddings)


def test_split_weights_load_like_a_single_file(exported, tmp_path):
    policy, single = exported
    write_checkpoint(policy, tmp_path, step=7, max_shard_bytes=9_000_000)
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3
    models = [OpenVLAOFT.from_pretrained(path) for path in (single, tmp_path)]
    for (name, first), (_, second) in zip(*(model.named_parameters() for model in models), strict=True):
        assert torch.equal(first, second), name


def test_dimensions_survive_config_json(tmp_path):
    config = tiny_config(image_size=56)
    (tmp_path / "config.json").write_text(json.dumps(config_to_json(config)))
    assert read_config(tmp_path) == config


def damage_missing_tensor(directory):
    tensors = load_file(directory / "model.safetensors")
    del tensors["projector.fc2.bias"]
    save_file(tensors, directory / "model.safetensors")


def damage_shape(directory):
    tensors = load_file(directory / "model.safetensors")
    tensors["projector.fc2.bias"] = torch.zeros(3)
    save_file(tensors, directory / "model.safetensors")


def damage_extra_tensor(directory):
    tensors = load_file(directory / "model.safetensors")
    tensors["projector.fc4.bias"] = torch.zeros(3)
    save_file(tensors, directory / "model.safetensors")


def damage_truncated(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:10_000_000])


def damage_pickle(directory):
    torch.save({"fc1.weight": print}, directory / "proprio_projector--7_checkpoint.pt")


def damage_text(directory):
    (directory / "proprio_projector--7_checkpoint.pt").write_text("see elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing_tensor, r"1 tensors are missing: projector\.fc2\.bias"),
        (damage_shape, r"projector\.fc2\.bias has shape \(3,\), config\.json implies \(64,\)"),
        (damage_extra_tensor, r"'projector\.fc4\.bias', which OpenVLA-OFT does not have"),
        (damage_truncated, "not a complete safetensors file"),
        (damage_pickle, "cannot be read as a plain state dict"),
        (damage_text, r"proprio_projector--7_checkpoint\.pt: cannot be read as a plain state dict"),
    ],
)
def test_damaged_weights_are_refused_by_name(broken, damage, message):
    damage(broken)
    with pytest.raises(ValueError, match=message):
        OpenVLAOFT.from_pretrained(broken)


def nothing(_directory):
    pass


def describe(plan_tiny, directory, **changes):
    return plan_tiny(**{"checkpoint": str(directory), **BASE, **changes})


def test_a_description_counts_without_reading_weights(plan_tiny, unreadable, build):
    plan = describe(plan_tiny, unreadable)
    policy = build()
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    frozen = sum(parameter.numel() for parameter in policy.parameters() if not parameter.requires_grad)
    assert (plan.trainable_parameters, plan.frozen_parameters) == (trained, frozen)
    assert plan.trainable_bytes == 4 * trained
    assert "profile simplevla" in plan.text and "by transform oft," in plan.text
    assert plan.statistics == "libero_spatial_no_noops" and plan.statistics in plan.text
    assert plan.build(device="cpu", empty=True).source.proprio


def test_the_tiny_model_is_described_too(plan_tiny):
    plan = plan_tiny(proprio=False, profile="rlinf")
    assert "by transform rlinf," in plan.text and "authors sample at 1.6" in plan.text
    assert not plan.build(device="cpu", empty=True).source.proprio


def test_random_weights_are_fed_proprioception_by_name_unless_told_otherwise():
    """`random-7b` stands for the public checkpoints with the discrete head, which have no projector."""
    for checkpoint, usual in (("tiny", True), ("random-7b", False)):
        for proprio, fed in ((None, usual), (True, True), (False, False)):
            assert find_source(checkpoint, profile="auto", image_size=None, proprio=proprio).proprio == fed


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (shutil.rmtree, {}, r"^policy\.checkpoint: .*is not a directory"),
        (lambda path: (path / "model.safetensors").unlink(), {}, r"missing model\.safetensors"),
        (lambda path: (path / "config.json").unlink(), {}, r"config\.json: not found"),
        (lambda path: (path / "config.json").write_text("{"), {}, "not valid JSON"),
        (lambda path: (path / "tokenizer.json").unlink(), {}, r"tokenizer\.json: not found"),
        (lambda path: (path / "preprocessor_config.json").unlink(), {}, r"preprocessor_config\.json: not found"),
        (
            lambda path: edit_json(path / "config.json", model_type="llama"),
            {},
            "model_type is 'llama', expected 'openvla'",
        ),
        (lambda path: edit_json(path / "config.json", n_action_bins=512), {}, "n_action_bins is 512"),
        (lambda path: edit_json(path / "config.json", image_sizes=[28, 42]), {}, "two equal multiples of 14"),
        (lambda path: (path / "action_head--7_checkpoint.pt").touch(), {}, "L1 regression.*Haozhan72.*rlinf"),
        (lambda path: (path / "vision_backbone--7_checkpoint.pt").touch(), {}, "FiLM"),
        (lambda path: (path / "proprio_projector--8_checkpoint.pt").touch(), {}, "several files for proprio_projector"),
        (nothing, {"suite": "libero_100"}, "checkpoint has: libero_10_no_noops, libero_90_no_noops"),
        (nothing, {"num_images": 2}, r"look at 1 image\(s\), found 2 camera"),
        (nothing, {"image_size": 224}, "image_size is 224, but .* takes 28 pixels"),
        (nothing, {"tasks": ()}, "tasks is empty"),
    ],
)
def test_a_checkpoint_that_does_not_fit_gets_one_clear_error(unreadable, plan_tiny, damage, changes, message):
    damage(unreadable)
    with pytest.raises(ValueError, match=message):
        describe(plan_tiny, unreadable, **changes)


def edit_statistics(name=None, field=None, value=None):
    """Replaces one list of the suite's statistics, one block, or (without a name) all of them."""

    def damage(directory):
        path = directory / "dataset_statistics.json"
        content = json.loads(path.read_text())
        suite = content["libero_spatial_no_noops"]
        if name is None:
            content["libero_spatial_no_noops"] = value
        elif field is None:
            suite[name] = value
        else:
            suite[name][field] = value
        path.write_text(json.dumps(content))

    return damage


STATISTICS = r"^/.*/dataset_statistics\.json: libero_spatial_no_noops\."


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit_statistics(value=[1]), STATISTICS + "action is None; expected an object with the lists q01 and q99"),
        (edit_statistics("action", value=[0.0]), STATISTICS + r"action is \[0\.0\]; expected an object"),
        (edit_statistics("action", value={}), STATISTICS + "action.q01 is None; expected 7 finite numbers"),
        (edit_statistics("action", "q99"), STATISTICS + "action.q99 is None; expected 7 finite numbers"),
        (edit_statistics("action", "q01", [0.0] * 6), STATISTICS + r"action.q01 is \[0\.0, .*expected 7 finite"),
        (edit_statistics("action", "q01", [0.0] * 14), STATISTICS + "action.q01 .*expected 7 finite numbers"),
        (edit_statistics("action", "q99", ["1"] * 7), STATISTICS + "action.q99 .*expected 7 finite numbers"),
        (edit_statistics("action", "mask", [True] * 6), STATISTICS + "action.mask .*expected 7 times true or false"),
        (edit_statistics("action", "q99", [-9.0] * 7), STATISTICS + r"action: q99 \[-9\.0.*is below q01"),
        (edit_statistics("proprio"), STATISTICS + "proprio is None; expected an object"),
        (edit_statistics("proprio", "q01", [0.0] * 7), STATISTICS + "proprio.q01 .*expected 8 finite numbers"),
        (
            edit_statistics("proprio", "q99", [float("nan")] * 8),
            STATISTICS + r"proprio.q99 is \[nan.*expected 8",
        ),
    ],
)
def test_statistics_that_scale_something_else_are_refused_by_file_and_field(unreadable, plan_tiny, damage, message):
    damage(unreadable)
    with pytest.raises(ValueError, match=message):
        describe(plan_tiny, unreadable)


def test_statistics_of_what_is_not_fed_do_not_matter(unreadable, plan_tiny):
    (unreadable / "proprio_projector--7_checkpoint.pt").unlink()
    edit_statistics("proprio", "q01", [0.0] * 7)(unreadable)
    assert describe(plan_tiny, unreadable).statistics == "libero_spatial_no_noops"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", "", r"tokenizer\.json: no tokenizer"),
        ("tokenizer.json", "{}", r"tokenizer\.json: no tokenizer"),
        ("vla_rl.json", '{"profile": ["rlinf"]}', r"vla_rl\.json: profile is \['rlinf'\]; expected the name of one"),
    ],
)
def test_a_small_file_that_holds_something_else_is_refused_by_name(unreadable, plan_tiny, file, content, message):
    (unreadable / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        describe(plan_tiny, unreadable)


def test_norm_stats_that_are_a_list_are_refused(unreadable, plan_tiny):
    edit_json(unreadable / "config.json", norm_stats=["libero_spatial"])
    with pytest.raises(ValueError, match=r"config\.json: norm_stats is a list; expected an object of data sets"):
        describe(plan_tiny, unreadable)


def test_an_l1_head_is_refused_for_demonstrations_with_the_way_out_of_that_stage(unreadable, plan_tiny):
    (unreadable / "action_head--7_checkpoint.pt").touch()
    with pytest.raises(
        ValueError, match=r"L1 regression.*`vla-rl sft` does not train.*=openvla/openvla-7b$"
    ) as refused:
        describe(plan_tiny, unreadable, measured={})
    assert "reinforcement" not in str(refused.value)


def test_an_l1_head_is_the_first_thing_that_is_said_of_a_folder(unreadable, plan_tiny):
    (unreadable / "action_head--7_checkpoint.pt").touch()
    for name in ("tokenizer.json", "preprocessor_config.json", "dataset_statistics.json"):
        (unreadable / name).unlink()
    with pytest.raises(ValueError, match=r"L1 regression.*nothing to sample from.*Haozhan72.*rlinf"):
        describe(plan_tiny, unreadable, suite="libero_100", image_size=224, num_images=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timm_model_overrides": [{"width": 3}, {}]}, r"timm_model_overrides has the keys \['width'\].*embed_dim"),
        ({"timm_model_overrides": [{}]}, "expected two JSON objects, for DINOv2 and for SigLIP"),
        ({"timm_model_overrides": [{"depth": 2.5}, {}]}, "timm_model_overrides.depth is 2.5; expected a positive int"),
        ({"timm_model_overrides": [{"embed_dim": 30}, {}]}, "num_heads is 16, which does not divide 30"),
        ({"image_sizes": ["28", "28"]}, "two equal multiples of 14"),
        ({"image_sizes": 28}, "two equal multiples of 14"),
        ({"text_config": []}, None),
        ({"text_config": "llama"}, "text_config is 'llama'; expected a JSON object"),
        ({"text_config": {"hidden_size": "64"}}, "text_config.hidden_size is '64'; expected a positive int"),
        ({"text_config": {"num_hidden_layers": True}}, "num_hidden_layers is True; expected a positive int"),
        ({"text_config": {"rms_norm_eps": 0}}, "text_config.rms_norm_eps is 0; expected a positive float"),
        ({"text_config": {"num_attention_heads": 3}}, "num_attention_heads is 3, which does not divide 4096"),
        ({"text_config": {"vocab_size": 32000}}, "vocab_size is 32000, expected 32064"),
        ({"text_config": {"hidden_act": "gelu"}}, "text_config.hidden_act is 'gelu', expected 'silu'"),
        ({"text_config": {"model_type": "mistral"}}, "text_config.model_type is 'mistral', expected 'llama'"),
        ({"text_config": {"attention_bias": True}}, "text_config.attention_bias is True, expected False"),
        (
            {"text_config": {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}},
            r"text_config.rope_parameters is \{'rope_type': 'linear'.*expected none or the rope_type 'default'",
        ),
        ({"text_config": {"rope_scaling": {"type": "dynamic"}}}, "text_config.rope_scaling is"),
        ({"text_config": {"rope_parameters": {"rope_theta": "1e4"}}}, "rope_theta is '1e4'; expected a positive float"),
        ({"text_config": {"rms_norm_eps": float("inf")}}, "rms_norm_eps is inf; expected a positive float"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_file_and_field(tmp_path, changes, message):
    (tmp_path / "config.json").write_text(json.dumps({**config_to_json(tiny_config()), **changes}))
    if message is None:  # an empty difference is one
        assert read_config(tmp_path).llama.hidden_size == 4096
        return
    with pytest.raises(ValueError, match=message) as raised:
        read_config(tmp_path)
    assert str(raised.value).startswith(str(tmp_path / "config.json"))


def test_what_newer_libraries_write_into_text_config_is_understood(tmp_path):
    newer = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}, "hidden_act": "silu"}
    (tmp_path / "config.json").write_text(json.dumps({**config_to_json(tiny_config()), "text_config": newer}))
    assert read_config(tmp_path).llama.rope_theta == 500000.0


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_the_dtype_is_read_under_its_old_and_its_new_name(tmp_path, key):
    content = config_to_json(tiny_config())
    del content["torch_dtype"]
    (tmp_path / "config.json").write_text(json.dumps({**content, key: "float32"}))
    assert read_config(tmp_path).dtype == "float32"


def test_a_recipe_and_the_options_take_every_profile_and_auto():
    assert get_args(ProfileName) == ("auto", *PROFILES)


def test_the_profile_of_an_l1_head_is_refused_where_there_is_none(exported, tmp_path):
    with pytest.raises(
        ValueError, match=r"'oft_l1' is for checkpoints with an L1 head.*\['auto', 'simplevla', 'rlinf'\]"
    ):
        OpenVLAOFT.from_pretrained(exported[1], profile="oft_l1")
    with pytest.raises(ValueError, match="'oft_l1' is for checkpoints with an L1 head"):
        find_source("tiny", profile="oft_l1", image_size=None, proprio=True)


def test_tensors_that_are_not_needed_and_not_there_are_exported_as_zeros(broken, build, tmp_path):
    name = "vision_backbone.featurizer.norm.bias"
    tensors = load_file(broken / "model.safetensors")
    del tensors[name]
    save_file(tensors, broken / "model.safetensors")
    again = tmp_path / "again"
    again.mkdir()
    assert write_checkpoint(build(checkpoint=str(broken), **BASE), again, step=1) == [name]
    written = load_file(again / "model.safetensors")
    assert not written.pop(name).any()
    assert written.keys() == tensors.keys()


def test_statistics_in_config_json_count_where_the_file_is_absent(unreadable, plan_tiny):
    statistics = json.loads((unreadable / "dataset_statistics.json").read_text())
    (unreadable / "dataset_statistics.json").unlink()
    edit_json(unreadable / "config.json", norm_stats={"libero_goal": statistics["libero_goal_no_noops"]})
    assert describe(plan_tiny, unreadable, suite="libero_goal").statistics == "libero_goal"
