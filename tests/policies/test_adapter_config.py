"""Every field of peft's LoraConfig: merged as peft merges it, or refused by name."""

import copy
import dataclasses
import itertools
import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraRuntimeConfig
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file, save_file

from vla_rl.policies.lora_section import LoraSection
from vla_rl.policies.openvla_oft import OpenVLAOFT
from vla_rl.policies.openvla_oft.adapter_config import (
    COMPUTED,
    REFUSED,
    WITHOUT_EFFECT,
    is_chosen,
    write_adapter_config,
)
from vla_rl.policies.openvla_oft.checkpoint_writer import write_checkpoint

INSTALLED = {field.name for field in dataclasses.fields(LoraConfig)}
LINEARS = ["q_proj", "down_proj", "fc1"]  # of Llama, of Llama, of both ViTs and the projector
TARGETS = [*LINEARS, "patch_embed.proj"]  # convolutions

# An adapter for every field that is not refused, and for every value of those that name a few. What is not named is as
# in `make_adapter`.
CASES = {
    "peft_type": [{}],
    "r": [{"r": 6}],
    "lora_alpha": [{"lora_alpha": 3}],
    "rank_pattern": [
        {"rank_pattern": {"q_proj": 2, r".*layers\.0\..*down_proj": 6}},
        {"rank_pattern": {r"layers.\d+.self_attn.q_proj": 3, "q_proj": 5}},  # the first one that matches
    ],
    "alpha_pattern": [{"alpha_pattern": {"q_proj": 2, r"^language_model.model.layers.0.mlp.down_proj": 16}}],
    "use_rslora": [{"use_rslora": True}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}}],
    "target_modules": [
        {"target_modules": ["lm_head"]},
        {"target_modules": r".*layers\.[01]\.self_attn\.(q|v)_proj"},
        {"target_modules": "all-linear"},
    ],
    "exclude_modules": [
        {"exclude_modules": ["layers.0.self_attn.q_proj", "fc1"]},
        {"exclude_modules": r"vision_backbone\..*"},
    ],
    "layers_to_transform": [
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 2]},
        {"target_modules": ["q_proj", "fc1"], "layers_to_transform": 1},
    ],
    "layers_pattern": [
        {"target_modules": ["q_proj", "fc1"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "fc1"], "layers_to_transform": [1], "layers_pattern": ["blocks", "layers"]},
    ],
    "modules_to_save": [{"modules_to_save": ["lm_head"]}, {"modules_to_save": ["lm_head", "projector.fc3"]}],
    "init_lora_weights": [
        *({"init_lora_weights": value} for value in (False, "gaussian")),
        *({"init_lora_weights": value, "target_modules": LINEARS} for value in ("orthogonal", "eva", "mica")),
    ],
    "task_type": [{"task_type": "FEATURE_EXTRACTION"}],
    "auto_mapping": [{"auto_mapping": {"base_model_class": "OpenVLAForActionPrediction"}}],
    "peft_version": [{}],
    "base_model_name_or_path": [{}],
    "revision": [{"revision": "main"}],
    "inference_mode": [{"inference_mode": True}],
    "lora_dropout": [{"lora_dropout": 0.5}],
    "fan_in_fan_out": [{"fan_in_fan_out": True}],
    "megatron_core": [{"megatron_core": "another.core"}],
    "qalora_group_size": [{"qalora_group_size": 8}],
    "loftq_config": [{"loftq_config": {"loftq_bits": 2}}],
    "eva_config": [
        {"eva_config": EvaConfig()},
        {"eva_config": EvaConfig(), "init_lora_weights": "eva", "target_modules": LINEARS},
    ],
    "corda_config": [{"corda_config": CordaConfig()}],
    "lora_ga_config": [{"lora_ga_config": {}}],
    "runtime_config": [{"runtime_config": LoraRuntimeConfig(ephemeral_gpu_offload=True)}],
    "ensure_weight_tying": [{"ensure_weight_tying": True, "modules_to_save": ["lm_head"]}],
}

REFUSED_VALUES = {
    "bias": ["all", "lora_only"],
    "lora_bias": [True],
    "use_dora": [True],
    "layer_replication": [[[0, 2], [1, 3]]],
    "target_parameters": [["self_attn.q_proj.weight"], []],
    "trainable_token_indices": [[1, 2], {"embed_tokens": [1]}],
    "use_bdlora": [{"nblocks": 2}, {}],
    "velora_config": [{"num_groups": 8}],
    "kasa_config": [{}],
    "monteclora_config": [{"num_samples": 4}],
    "megatron_config": [{"num_layers": 2}],
    "use_qalora": [True],
    "alora_invocation_tokens": [[5, 6]],
    "arrow_config": [{"top_k": 1}],
    "init_lora_weights": ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "of-tomorrow", 2],
    "a_field_of_tomorrow": [True, 3, "on", {"rate": 1}],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory, module_build):
    directory = tmp_path_factory.mktemp("adapters") / "base"
    directory.mkdir()
    write_checkpoint(module_build(lora=None, train_action_rows=False), directory, step=1)
    return directory


@pytest.fixture(scope="module")
def network(base):
    return OpenVLAOFT.from_pretrained(base)


def for_peft(network):
    """A copy that peft takes: it asks for a mapping where the network has its dimensions."""
    taken = copy.deepcopy(network)
    taken.config = {"model_type": "custom"}
    return taken


def disturb(model, scale=0.1):
    """Move what is trained, as a training would."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def make_adapter(network, base, folder, **fields):
    """What peft itself writes of an adapter that was trained."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, **fields}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's remarks on the odd ones
        model = get_peft_model(for_peft(network), LoraConfig(base_model_name_or_path=str(base), **settings))
        disturb(model)
        model.save_pretrained(str(folder))
    edit(folder, base_model_name_or_path=str(base))
    return folder


def edit(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_every_field_of_the_installed_peft_is_computed_or_without_effect_or_refused():
    tables = (COMPUTED, WITHOUT_EFFECT, frozenset(REFUSED))
    assert sorted(itertools.chain(*tables)) == sorted(frozenset().union(*tables))  # in one table alone
    assert not INSTALLED - frozenset().union(*tables)
    assert not (INSTALLED & (COMPUTED | WITHOUT_EFFECT)) - CASES.keys()
    assert REFUSED.keys() <= REFUSED_VALUES.keys()


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(fields, id=f"{name}-{number}")
        for name, adapters in CASES.items()
        if name in INSTALLED
        for number, fields in enumerate(adapters)  # type: ignore[arg-type]
    ],
)
@torch.no_grad()
def test_an_adapter_is_merged_as_peft_merges_it(network, base, tmp_path, fields):
    adapter = make_adapter(network, base, tmp_path, **fields)
    ours = OpenVLAOFT.from_pretrained(adapter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = dict(PeftModel.from_pretrained(for_peft(network), str(adapter)).merge_and_unload().named_parameters())
    changed = 0
    for (name, before), (_, after) in zip(network.named_parameters(), ours.named_parameters(), strict=True):
        changed += not torch.equal(before, after)
        assert torch.allclose(after, theirs[name], atol=2e-6, rtol=2e-6), name
    assert changed >= 1


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in REFUSED_VALUES.items() for value in values]
)
def test_what_is_not_merged_as_peft_merges_it_is_refused_by_name(network, base, tmp_path, name, value):
    adapter = make_adapter(network, base, tmp_path)
    edit(adapter, **{name: value})
    with pytest.raises(
        ValueError, match=rf"adapter_config\.json: {name} is .*(merge it|it cannot be merged|without it)"
    ):
        OpenVLAOFT.from_pretrained(adapter)
    for off in (None, False):
        edit(adapter, **{name: off})
        OpenVLAOFT.from_pretrained(adapter)


def test_all_that_is_refused_is_told_at_once(network, base, tmp_path):
    adapter = make_adapter(network, base, tmp_path)
    edit(adapter, use_dora=True, init_lora_weights="pissa", bias="all")
    with pytest.raises(ValueError, match=r"init_lora_weights is 'pissa'.*bias is 'all'.*use_dora is True"):
        OpenVLAOFT.from_pretrained(adapter)


@pytest.mark.parametrize("start", ["pissa", "olora"])
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:PiSSA changes", "ignore:OLoRA changes")
def test_an_adapter_that_peft_has_converted_is_what_was_trained(network, base, tmp_path, start):
    """PiSSA and OLoRA take their first factors out of the base; peft's conversion takes that back."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=start)
    model = get_peft_model(for_peft(network), config)
    model.peft_config["default"].init_lora_weights = True  # what was taken out must not be taken out once more
    model.save_pretrained(str(tmp_path / "first"))
    model.peft_config["default"].init_lora_weights = start
    disturb(model, scale=0.02)
    model.save_pretrained(str(tmp_path / "converted"), path_initial_model_for_weight_conversion=str(tmp_path / "first"))
    edit(tmp_path / "converted", base_model_name_or_path=str(base))
    ours = OpenVLAOFT.from_pretrained(tmp_path / "converted")
    theirs = dict(model.merge_and_unload().named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, theirs[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers_to_transform": [0]}, r"leave out language_model\.model\.layers\.1\..*would not load them"),
        ({"target_modules": ["q_proj"]}, "the fields that choose modules .*leave out .*down_proj"),
        ({"exclude_modules": ["q_proj"]}, "leave out .*q_proj"),
        ({"modules_to_save": ["language_model"]}, "leave out .*q_proj"),
        ({"target_modules": [1]}, r"target_modules is \[1\]; expected a list of names, a regular expression or null"),
        ({"target_modules": "q_proj("}, r"target_modules has 'q_proj\(', which is no regular expression"),
        ({"layers_pattern": ["("]}, "layers_pattern has .* no regular expression"),
        ({"layers_to_transform": ["0"]}, r"layers_to_transform is \['0'\]; expected numbers"),
        (
            {"rank_pattern": {"q_proj": 0}},
            "rank_pattern is .* expected an object .* to positive int",
        ),
        ({"rank_pattern": {"q_proj": 8}}, r"the factors of .*q_proj\.weight have the shapes .*; r is 8"),
        ({"alpha_pattern": {"(": 1.0}}, "alpha_pattern has .* no regular expression"),
        ({"alpha_pattern": [1]}, "alpha_pattern is .* expected an object"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'; expected true or false"),
    ],
)
def test_fields_that_do_not_fit_the_factors_get_one_clear_error(network, base, tmp_path, fields, message):
    adapter = make_adapter(network, base, tmp_path, target_modules=["q_proj", "down_proj"])
    edit(adapter, **fields)
    with pytest.raises(ValueError, match=message):
        OpenVLAOFT.from_pretrained(adapter)


def test_a_tensor_of_another_kind_than_the_two_factors_is_refused(network, base, tmp_path):
    adapter = make_adapter(network, base, tmp_path, target_modules=["q_proj"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name in ("lora_magnitude_vector", "lora_B.bias", "lora_embedding_A"):
        key = f"base_model.model.language_model.model.layers.0.self_attn.q_proj.{name}"
        save_file({**tensors, key: torch.zeros(4)}, adapter / "adapter_model.safetensors")
        with pytest.raises(ValueError, match=f"{name}', which is neither of the two factors"):
            OpenVLAOFT.from_pretrained(adapter)


MODULES = [
    "layers.0.self_attn.q_proj",
    "language_model.model.layers.0.self_attn.q_proj",
    "language_model.model.layers.11.self_attn.q_proj",
    "language_model.model.layers.1.mlp.experts.0.down_proj",
    "language_model.lm_head",
    "projector.fc1",
    "vision_backbone.featurizer.blocks.1.mlp.fc1",
    "q_proj",
]
TARGET_CHOICES = [["q_proj"], ["proj", "fc1"], ["layers.0.self_attn.q_proj", "lm_head"], r".*\.(q|down)_proj", "q_proj"]
EXCLUDE_CHOICES = [None, [], ["q_proj"], ["mlp.fc1", "projector.fc1"], r"language_model\..*"]
LAYER_CHOICES = [None, [], 0, 1, [1], [0, 11]]
PATTERN_CHOICES = [None, "layers", ["blocks", "layers"], ["experts"]]


@pytest.mark.parametrize("targets", TARGET_CHOICES)
def test_modules_are_chosen_as_peft_chooses_them(targets):
    counts = [0, 0]
    for excluded, layers, pattern, whole in itertools.product(
        EXCLUDE_CHOICES, LAYER_CHOICES, PATTERN_CHOICES, [None, ["lm_head"], ["mlp"]]
    ):
        if (isinstance(targets, str) and (layers is not None or pattern)) or (pattern and layers is None):
            continue  # peft refuses these
        fields = {
            "target_modules": targets,
            "exclude_modules": excluded,
            "layers_to_transform": layers,
            "layers_pattern": pattern,
            "modules_to_save": whole,
        }
        config = LoraConfig(**copy.deepcopy(fields))
        for module in MODULES:
            theirs = check_target_module_exists(config, module)
            expected = bool(theirs) and type(theirs).__name__ != "_ExcludedModule"
            assert is_chosen(fields, module) == expected, (fields, module)
            counts[expected] += 1
    assert min(counts) >= 10


# The fields of peft.LoraConfig 0.11.1 with those that it inherits, read off peft/config.py and
# peft/tuners/lora/config.py of the wheel peft-0.11.1-py3-none-any.whl. That version raises TypeError on any other key
# of adapter_config.json.
FIELDS_OF_PEFT_0_11_1 = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode",
    "init_lora_weights", "layer_replication", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "megatron_config", "megatron_core", "modules_to_save", "peft_type", "r", "rank_pattern", "revision",
    "target_modules", "task_type", "use_dora", "use_rslora",
}  # fmt: skip


def test_a_written_configuration_has_the_fields_of_peft_0_11_1_alone_and_reads_back(tmp_path):
    settings = LoraSection(rank=3, alpha=5.0, dropout=0.25, targets=["v_proj", "q_proj"])
    write_adapter_config(settings, tmp_path, base="here", whole_modules=["lm_head"])
    assert json.loads((tmp_path / "adapter_config.json").read_text()).keys() == FIELDS_OF_PEFT_0_11_1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = LoraConfig.from_pretrained(str(tmp_path))
    expected = LoraConfig(
        r=3, lora_alpha=5.0, lora_dropout=0.25, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"],
        base_model_name_or_path="here", inference_mode=True, init_lora_weights="gaussian",
    )  # fmt: skip
    differing = {name for name in INSTALLED if getattr(config, name) != getattr(expected, name)}
    assert differing <= {"peft_version"}  # which a folder does not say that peft did not write
