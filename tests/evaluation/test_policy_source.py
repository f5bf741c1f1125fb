"""What can be evaluated, and how the rest is refused."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vla_rl.evaluation.history import history_of, record_history
from vla_rl.evaluation.policy_source import find_policy
from vla_rl.learner.checkpoint import CheckpointError, Progress, save
from vla_rl.learner.engine import Engine
from vla_rl.policies.openvla_oft.checkpoint_writer import write_checkpoint
from vla_rl.recipe import build_recipe
from vla_rl.rl.optimizer_section import OptimizerSection
from vla_rl.run.folder import RunFolder
from vla_rl.run.plan import plan_policy

RECIPE = """
name: tuned
env: {name: libero, suite: libero_goal, tasks: [3]}
policy: {name: openvla_oft, image_size: 14, lora: {rank: 2}}
surrogate: {name: gipo}
budget: {optimizer_steps: 1}
"""


def test_a_run_stands_for_its_newest_checkpoint(trained):
    by_run = find_policy(str(trained), profile="auto")
    by_checkpoint = find_policy(str(trained / "checkpoints" / "optimizer_step_30"), profile="auto")
    assert by_run == by_checkpoint
    assert by_run.checkpoint == trained / "checkpoints" / "optimizer_step_30"
    assert by_run.home == trained / "eval"
    assert by_run.trained_on == "toy (tasks: 0,1), sampled initial states"


def test_a_run_that_asked_for_a_gpu_is_evaluated_where_there_is_none(trained, tmp_path):
    moved = shutil.copytree(trained, tmp_path / "moved")
    text = (moved / "recipe.yaml").read_text()
    assert "device: cpu" in text
    (moved / "recipe.yaml").write_text(text.replace("device: cpu", "device: cuda"))
    assert find_policy(str(moved), profile="auto").run.runtime.device == "auto"


def test_a_moved_run_is_the_same_policy(trained, tmp_path):
    moved = shutil.copytree(trained, tmp_path / "moved")
    fingerprints = {find_policy(str(path), profile="auto").fingerprint for path in (trained, moved)}
    assert len(fingerprints) == 1


def test_a_damaged_checkpoint_is_refused(trained, tmp_path):
    moved = shutil.copytree(trained, tmp_path / "moved")
    checkpoint = moved / "checkpoints" / "optimizer_step_30"
    weights = bytearray((checkpoint / "policy.safetensors").read_bytes())
    weights[-1] ^= 1
    (checkpoint / "policy.safetensors").write_bytes(weights)
    for target in (checkpoint, moved):
        with pytest.raises(CheckpointError, match="damaged"):
            find_policy(str(target), profile="auto")


def tuned_run(folder, *overrides):
    """A run with one checkpoint, started in the current directory."""
    recipe = build_recipe(RECIPE, overrides)
    settings = OptimizerSection(policy_lr=0.0, value_lr=0.0, schedule="constant")
    policy = plan_policy(recipe.setup).build(device="cpu")
    engine = Engine(policy, strategy="single", zero_stage=2, precision="fp32", device="cpu", optimizer=settings)
    RunFolder(folder).write_records(recipe, assets={}, deviations=[], extra={}, after_optimizer_step=0)
    save(folder, engine, progress=Progress(1, 0, 0, 0, 0, 0), extra={}, writers={}, keep=1)


def write_base(folder):
    folder.mkdir()
    write_checkpoint(plan_policy(build_recipe(RECIPE).setup).build(device="cpu"), folder, step=0)


def test_a_relative_checkpoint_of_a_run_is_found_from_every_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tuned_run(tmp_path / "random")
    write_base(tmp_path / "base")
    record_history(tmp_path / "base", history_of(find_policy("random", profile="auto")))
    (tmp_path / "assets").mkdir()
    tuned_run(tmp_path / "runs" / "tuned", "policy.checkpoint=base", "env.assets=assets")
    here = find_policy("runs/tuned", profile="auto")
    assert here.policy.checkpoint == "base"

    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    there = find_policy("../runs/tuned", profile="auto")
    assert there.policy.checkpoint == str(tmp_path / "base")
    assert there.run.env.assets == str(tmp_path / "assets")
    assert there.fingerprint == here.fingerprint
    plan_policy(there.setup("libero_goal"))  # reads the base's files
    history = history_of(there)
    assert history.base == "base"  # no path of this machine
    assert history.base_history.run == "tuned"


def test_a_checkpoint_that_is_nowhere_is_answered_with_where_it_should_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "base")
    tuned_run(tmp_path / "run", "policy.checkpoint=base")
    (tmp_path / "base").rename(tmp_path / "moved")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(ValueError, match=rf"of the name base .* started in, which was {tmp_path}, .* back there$"):
        find_policy("../run", profile="auto")
    (tmp_path / "run" / "manifest.json").unlink()  # as of older runs, which do not tell it
    with pytest.raises(ValueError, match=r"manifest does not tell\. Run the command in that directory$"):
        find_policy("../run", profile="auto")


def directory(path, weights=b"weights"):
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(weights)
    return path


def test_a_checkpoint_directory_is_a_policy_of_unknown_training(tmp_path):
    source = find_policy(str(directory(tmp_path / "merged")), profile="rlinf")
    assert source.checkpoint is None
    assert source.policy.checkpoint == str(tmp_path / "merged")
    assert source.policy.profile == "rlinf"
    assert source.policy.lora is None
    assert source.trained_on == "unknown"
    assert str(source.home) == "runs/merged/eval"  # never into the user's folder


@pytest.mark.parametrize("name", ["tiny", "random-7b"])
def test_a_folder_that_is_called_like_a_random_model_is_given_by_its_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    directory(tmp_path / name)
    source = find_policy(f"./{name}", profile="auto")
    assert source.policy.checkpoint == f"./{name}"  # without the dot it would be the random model
    assert find_policy("tiny", profile="auto").policy.checkpoint == "tiny"


def test_the_name_of_a_recipe_is_answered_with_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"`vla-rl train toy` makes the run runs/toy$"):
        find_policy("toy", profile="auto")
    (tmp_path / "runs" / "toy").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"did you mean runs/toy\?$"):
        find_policy("toy", profile="auto")


def test_a_best_checkpoint_that_a_run_does_not_keep_is_answered_with_the_field_that_keeps_it(tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    with pytest.raises(
        CheckpointError, match=r"best does not exist: .*; only runs whose checkpoint\.keep_best is true keep one$"
    ):
        find_policy(str(checkpoints / "best"), profile="auto")
    with pytest.raises(CheckpointError, match=r"or exported weights$"):
        find_policy(str(checkpoints / "optimizer_step_7"), profile="auto")


def test_other_weights_have_another_fingerprint(tmp_path):
    large = bytes(10_000_000)
    changed = large[:5_000_000] + bytes([1]) * 1_000_000 + large[6_000_000:]
    fingerprints = [
        find_policy(str(directory(tmp_path / str(number), weights)), profile="auto").fingerprint
        for number, weights in enumerate([large, large, changed, large + b"0", b"short"])
    ]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 4


def test_an_adapter_alone_is_a_policy_whose_base_counts_too(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../base"}))
    (adapter / "adapter_model.safetensors").write_bytes(b"factors")
    fingerprints = []
    for weights in (b"one", b"two"):
        shutil.rmtree(tmp_path / "base", ignore_errors=True)
        directory(tmp_path / "base", weights)
        source = find_policy(str(adapter), profile="auto")
        assert (source.checkpoint, source.policy.checkpoint) == (None, str(adapter))
        fingerprints.append(source.fingerprint)
    assert len(set(fingerprints)) == 2


def test_an_adapter_without_its_base_is_told_so(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 32}))
    with pytest.raises(ValueError, match="nothing says which weights it adapts"):
        find_policy(str(tmp_path), profile="auto")


def test_a_folder_that_is_no_policy_is_told_why(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no recipe\.yaml"):
        find_policy(str(tmp_path), profile="auto")


def test_a_profile_of_what_has_one_is_refused(trained):
    for target in (trained, trained / "checkpoints" / "optimizer_step_30"):
        with pytest.raises(ValueError, match=f"--profile: {target} belongs to a run"):
            find_policy(str(target), profile="simplevla")


def test_a_run_without_a_checkpoint_is_told_so(trained, tmp_path):
    shutil.copy(trained / "recipe.yaml", tmp_path)
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        find_policy(str(tmp_path), profile="auto")


def test_a_file_is_no_policy(trained):
    with pytest.raises(CheckpointError, match="it is a file"):
        find_policy(str(trained / "recipe.yaml"), profile="auto")


def test_a_typed_hub_id_is_downloaded_without_code(tmp_path, monkeypatch):
    import huggingface_hub

    def snapshot(name, *, local_files_only, allow_patterns):
        assert (name, local_files_only) == ("somebody/model", False)
        assert allow_patterns == ["*.json", "*.safetensors", "*.pt", "tokenizer.model"]
        return str(directory(tmp_path / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    source = find_policy("somebody/model", profile="auto")
    assert (source.location, source.policy.checkpoint) == ("somebody/model", str(tmp_path / "snapshot"))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine that answers every request with one status and one error code."""
    import huggingface_hub.constants

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, code = answer
            self.send_response(status)  # type: ignore[arg-type]
            self.send_header("X-Error-Code", code)  # type: ignore[arg-type]
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    answer = [404, "RepoNotFound"]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield answer
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (404, "RepoNotFound", r"it is unknown, or private: check the spelling.*\(404 Client Error"),
        (401, "GatedRepo", r"it is gated: accept its terms on https://huggingface.co/some/model and.*\(401 Client"),
        (403, "GatedRepo", r"it is gated"),
        (418, "", r"not available now: run `hf download some/model` where.*\(\S+"),
    ],
)
def test_a_hub_id_that_cannot_be_had_is_told_with_the_reason(hub, status, code, reason):
    hub[:] = status, code
    with pytest.raises(ValueError, match=reason) as told:
        find_policy("some/model", profile="auto")
    assert "\n" not in str(told.value)


def test_a_name_that_the_hub_does_not_allow_is_misspelt():
    with pytest.raises(ValueError, match=r"unknown, or private: check the spelling.*\(Repo id must use alphanumeric"):
        find_policy("some/model..", profile="auto")


@pytest.mark.parametrize("during_download", [False, True])
def test_without_a_network_a_hub_id_says_so(monkeypatch, during_download):
    import huggingface_hub
    from huggingface_hub.errors import HTTPError

    def unreachable(*_, **__):
        raise HTTPError("no network") if during_download else OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ValueError, match=r"`hf download nobody/nothing` where there is a network.*no network\)"):
        find_policy("nobody/nothing", profile="auto")


def test_what_looks_like_a_path_is_no_hub_id():
    with pytest.raises(CheckpointError, match="does not exist"):
        find_policy("runs/a/b/c", profile="auto")
