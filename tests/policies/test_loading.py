"""Loading: from the package's name, adapter folders, hub ids, and the memory it takes."""

import json
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from vla_rl.policies.openvla_oft import OpenVLAOFT
from vla_rl.policies.openvla_oft.checkpoint_files import find_files
from vla_rl.policies.openvla_oft.checkpoint_writer import write_checkpoint

ADAPTER = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "base_model_name_or_path": "../base"}
LINEAR = "language_model.model.layers.1.mlp.down_proj"  # (64, 172)
CONVOLUTION = "vision_backbone.featurizer.patch_embed.proj"  # (32, 3, 14, 14)
UNUSED = "vision_backbone.featurizer.blocks.2.mlp.fc1"  # (128, 32), in a block that never reaches the output
WHOLE = "language_model.lm_head.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory, module_build):
    directory = tmp_path_factory.mktemp("loading") / "base"
    directory.mkdir()
    write_checkpoint(module_build(lora=None, train_action_rows=False), directory, step=1)
    return directory


@pytest.fixture
def adapter(base):
    """An adapter folder beside its base, for a linear layer, a convolution, an unused layer, and lm_head whole."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    tensors = {
        f"{LINEAR}.lora_A.weight": draw(4, 172),
        f"{LINEAR}.lora_B.weight": draw(64, 4),
        f"{CONVOLUTION}.lora_A.weight": draw(4, 3, 14, 14),
        f"{CONVOLUTION}.lora_B.weight": draw(32, 4, 1, 1),
        f"{UNUSED}.lora_A.weight": draw(4, 32),
        f"{UNUSED}.lora_B.weight": draw(128, 4),
        "language_model.lm_head.base_layer.weight": draw(32064, 64),
    }
    folder = base.parent / "adapter"
    folder.mkdir(exist_ok=True)
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    return folder


def edit(folder, **changes):
    (folder / "adapter_config.json").write_text(json.dumps({**ADAPTER, **changes}))


def test_the_package_names_the_network_and_imports_no_torch_for_it():
    code = (
        "import sys, vla_rl.policies.openvla_oft as p; assert 'torch' not in sys.modules; print(p.OpenVLAOFT.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "OpenVLAOFT\n"
    with pytest.raises(ImportError, match="Nothing"):
        from vla_rl.policies.openvla_oft import Nothing  # noqa: F401


def test_an_adapter_folder_is_its_base_with_the_products_added(base, adapter):
    plain, adapted = OpenVLAOFT.from_pretrained(base), OpenVLAOFT.from_pretrained(adapter)
    held = load_file(adapter / "adapter_model.safetensors")
    factors = {
        name: [held[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB"] for name in (LINEAR, CONVOLUTION)
    }
    expected = {
        f"{LINEAR}.weight": 2.0 * factors[LINEAR][1] @ factors[LINEAR][0],  # alpha / rank = 2
        f"{CONVOLUTION}.weight": 2.0
        * torch.einsum("or,rchw->ochw", factors[CONVOLUTION][1][:, :, 0, 0], factors[CONVOLUTION][0]),
    }
    for (name, before), (_, after) in zip(plain.named_parameters(), adapted.named_parameters(), strict=True):
        if name == WHOLE:
            assert torch.equal(after, held["base_model.model.language_model.lm_head.base_layer.weight"])
        else:
            torch.testing.assert_close(after, before + expected.get(name, 0.0), atol=1e-5, rtol=0)


def test_an_adapter_that_names_no_base_is_loaded_with_one(base, adapter):
    named = OpenVLAOFT.from_pretrained(adapter)
    edit(adapter, base_model_name_or_path="")
    with pytest.raises(ValueError, match=r'_path is empty, .* there, like "base_model_name_or_path": "path/to/[^ ]*"$'):
        OpenVLAOFT.from_pretrained(adapter)
    given = OpenVLAOFT.from_pretrained(base, adapter=adapter)
    for (name, one), (_, other) in zip(named.named_parameters(), given.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("written", ["{adapter}", "adapter", "."])
def test_an_adapter_that_names_itself_as_its_base_is_refused(adapter, written, monkeypatch):
    monkeypatch.chdir(adapter if written == "." else adapter.parent)
    edit(adapter, base_model_name_or_path=written.format(adapter=adapter))
    with pytest.raises(ValueError, match=r"base_model_name_or_path is .*, the adapter's own folder, so nothing says"):
        find_files(adapter)


def test_an_adapter_beside_shards_is_merged_already_and_not_read(base, adapter, tmp_path):
    published = tmp_path / "published"
    published.mkdir()
    for path in base.iterdir():
        (published / path.name).symlink_to(path)
    (published / "lora_adapter").symlink_to(adapter)
    (published / "adapter_config.json").write_text("{}")
    assert find_files(published).adapter is None
    plain, loaded = OpenVLAOFT.from_pretrained(base), OpenVLAOFT.from_pretrained(published)
    assert torch.equal(plain.get_parameter(f"{LINEAR}.weight"), loaded.get_parameter(f"{LINEAR}.weight"))


def test_a_relative_base_is_found_from_the_adapter_and_from_here_and_two_are_refused(
    base, adapter, tmp_path, monkeypatch
):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert find_files(adapter).directory.resolve() == base  # ../base, seen from the adapter
    other = tmp_path / "base"
    other.mkdir()
    assert find_files(adapter).directory.resolve() == base  # a folder that is no checkpoint is not meant
    shutil.copytree(base, other, dirs_exist_ok=True)
    with pytest.raises(
        ValueError, match=r"base_model_name_or_path '\.\./base' names two checkpoints, .*the whole path"
    ):
        find_files(adapter)
    monkeypatch.chdir(base.parent / "adapter")
    assert find_files(adapter).directory.resolve() == base


def without_partner(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors[f"base_model.model.{LINEAR}.lora_B.weight"]
    save_file(tensors, folder / "adapter_model.safetensors")


def without_first(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors[f"base_model.model.{LINEAR}.lora_A.weight"]
    save_file(tensors, folder / "adapter_model.safetensors")


def for_another_width(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[f"base_model.model.{LINEAR}.lora_B.weight"] = torch.zeros(65, 4)
    save_file(tensors, folder / "adapter_model.safetensors")


def for_another_network(folder):
    save_file({"base_model.model.encoder.weight": torch.zeros(1)}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: edit(folder, use_dora=True), "use_dora is True: .* merge it into its base with peft"),
        (lambda folder: edit(folder, peft_type="LOHA"), "expected peft_type LORA.*'LOHA'"),
        (lambda folder: edit(folder, base_model_name_or_path="nobody/nothing"), "not in the local cache"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), r"adapter_model\.safetensors is missing"),
        (lambda folder: edit(folder, r=None), r"adapter_config\.json: r is None; expected a positive int"),
        (lambda folder: edit(folder, r=0), "r is 0; expected a positive int"),
        (lambda folder: edit(folder, r="4"), "r is '4'; expected a positive int"),
        (lambda folder: edit(folder, lora_alpha=None), "lora_alpha is None; expected a positive float"),
        (lambda folder: edit(folder, base_model_name_or_path=3), "base_model_name_or_path is 3; expected"),
        (
            lambda folder: edit(folder, r=8),
            r"adapter_model\.safetensors: the factors of \S+ have the shapes \(4, .*, 4.*; r is 8",
        ),
        (without_first, rf"{LINEAR}\.lora_A\.weight is missing"),
        (without_partner, rf"{LINEAR}\.lora_B\.weight is missing"),
        (for_another_width, rf"adapts a {LINEAR}\.weight of shape \(65, 172\), the base's is \(64, 172\)"),
        (for_another_network, r"adapts what is not there: encoder\.weight"),
    ],
)
def test_an_adapter_that_does_not_fit_gets_one_clear_error(adapter, damage, message):
    damage(adapter)
    with pytest.raises(ValueError, match=message):
        OpenVLAOFT.from_pretrained(adapter)


def test_a_hub_id_without_a_network_is_one_clear_error(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(name, *, local_files_only, allow_patterns):
        assert (name, local_files_only) == ("some/model", False)
        assert "*.py" not in allow_patterns
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"'some/model' is not a directory.*hf download some/model"):
        OpenVLAOFT.from_pretrained("some/model")


def test_a_hub_id_s_snapshot_is_loaded_like_a_directory(monkeypatch, base):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(base))
    assert OpenVLAOFT.from_pretrained("some/model").dtype == torch.float32


def test_a_name_below_a_folder_that_is_here_is_no_hub_id(monkeypatch, tmp_path):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="'runs/mistyped' is not a directory; give"):
        OpenVLAOFT.from_pretrained("runs/mistyped")


def test_weights_keep_the_dtype_that_config_json_names(base, tmp_path, module_build):
    write_checkpoint(module_build(lora=None, dtype="bfloat16"), tmp_path, step=1)
    model = OpenVLAOFT.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    wide = OpenVLAOFT.from_pretrained(tmp_path, dtype=torch.float32)
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}
    assert OpenVLAOFT.from_pretrained(base).dtype == torch.float32


def test_a_network_that_sees_nothing_is_loaded_with_a_warning(base, tmp_path):
    blind = tmp_path / "blind"
    shutil.copytree(base, blind)
    tensors = load_file(blind / "model.safetensors")
    tensors["projector.fc3.weight"].zero_()
    save_file(tensors, blind / "model.safetensors")
    with pytest.warns(UserWarning, match="blind: the images do not matter") as caught:
        OpenVLAOFT.from_pretrained(blind)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OpenVLAOFT.from_pretrained(base)


MEASURE = """
import sys
from pathlib import Path
import torch
import transformers
from vla_rl.policies.openvla_oft import OpenVLAOFT
import vla_rl.policies.openvla_oft.model

def kibibytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

before = kibibytes("VmRSS")
model = OpenVLAOFT.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
print((kibibytes("VmHWM") - before) * 1024 / sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_takes_at_most_a_fifth_more_memory_than_the_weights(tmp_path, module_build, monkeypatch, dtype):
    """300 MB of bfloat16 weights in five shards, as they are and cast: 0.67 and 1.11 were measured.

    What is not cast stays mapped, and the test of the network reads most of it.
    """
    import dataclasses

    from vla_rl.policies.openvla_oft import tiny

    dims = {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 8}
    small = tiny.tiny_config(image_size=28)
    config = dataclasses.replace(small, llama=dataclasses.replace(small.llama, **dims))
    monkeypatch.setattr(tiny, "tiny_config", lambda **_: config)
    policy = module_build(lora=None, train_action_rows=False, dtype="bfloat16")
    write_checkpoint(policy, tmp_path, step=1, max_shard_bytes=80_000_000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) >= 4
    arguments = [sys.executable, "-c", MEASURE, str(tmp_path), dtype]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert 0.0 < float(done.stdout) < 1.2
