"""`vla-rl push` against a stand-in of the hub, with the hub's own client."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_stand_in import TOKEN, Hub, Repository, hub_stand_in
from safetensors.torch import save_file
from small_run import STEP, evaluate, fingerprint_of
from typer.testing import CliRunner, Result

from vla_rl.cli.main import app
from vla_rl.policies.lora_section import LoraSection
from vla_rl.policies.openvla_oft.adapter_config import write_adapter_config
from vla_rl.sharing import hub_upload

WEIGHTS = {
    "added_tokens.json", "config.json", "dataset_statistics.json", "generation_config.json", "model.safetensors",
    "preprocessor_config.json", "processor_config.json", "special_tokens_map.json", "tokenizer_config.json",
    f"proprio_projector--{STEP}_checkpoint.pt", "tokenizer.json", "value_head.safetensors", "vla_rl.json", "README.md",
}  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that this process's client talks to, with a token that may write."""
    with hub_stand_in() as stand_in:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in stores large files as LFS does
        yield stand_in


def push(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["push", *arguments])
    assert TOKEN not in result.output
    return result


def refused(*arguments: str, export_begun: bool = False) -> str:
    """The message of a push that is refused before anything is uploaded, and before a run is exported."""
    began = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_upload, "export", lambda *_a, **_n: began.append(True))
        result = push(*arguments)
    assert result.exit_code == 2, result.output
    assert bool(began) == export_begun
    return " ".join(result.stderr.split())


# --- what is uploaded ------------------------------------------------------------------------------------------------


def test_an_export_is_uploaded_with_its_card_in_one_commit(shared: Path, hub: Hub) -> None:
    result = push("export", "ann/arm", "--license", "mit")
    assert result.exit_code == 0, result.output
    repository = hub.repositories["ann/arm"]
    files = repository.branches["main"]
    assert set(files) == WEIGHTS
    assert not repository.private
    assert repository.commits == ["Upload a policy with vla-rl"]
    for name in WEIGHTS - {"README.md"}:
        assert files[name] == (shared / "export" / name).read_bytes(), name
    assert b"\nlicense: mit\n" in files["README.md"]
    assert b"vla-rl eval ann/arm\n" in files["README.md"]
    assert f"uploaded: {hub.url}/ann/arm/commit/" in result.output


def test_a_run_is_exported_first_and_nothing_of_the_export_stays(shared: Path, hub: Hub) -> None:
    evaluate(shared / "run/eval/one", fingerprint=fingerprint_of(shared / "run"), successes=9)
    before = sorted(shared.rglob("*"))
    result = push("run", "ann/arm")
    assert result.exit_code == 0, result.output
    files = hub.repositories["ann/arm"].branches["main"]
    assert set(files) == WEIGHTS
    assert files["model.safetensors"] == (shared / "export" / "model.safetensors").read_bytes()
    assert b"45.0 %" in files["README.md"]
    assert sorted(shared.rglob("*")) == before


def test_what_training_leaves_stays_here_unless_it_is_asked_for(shared: Path, hub: Hub) -> None:
    for name in (
        "optimizer.pt",
        "training_args.bin",
        "replay.safetensors",
        "rng_state.pt",
        "train.log",
        ".secret.json",
    ):
        (shared / "export" / name).write_bytes(b"x")
    (shared / "export" / "logs").mkdir()
    (shared / "export" / "logs" / "one.txt").write_text("x", encoding="utf-8")
    assert push("export", "ann/arm").exit_code == 0
    assert set(hub.repositories["ann/arm"].branches["main"]) == WEIGHTS
    assert push("run", "ann/more", "--include", "logs/*.log", "--include", "checkpoints/*/optimizer.*").exit_code == 0
    assert set(hub.repositories["ann/more"].branches["main"]) == WEIGHTS | {
        "logs/learner.log", f"checkpoints/optimizer_step_{STEP}/optimizer.safetensors",
    }  # fmt: skip


def test_a_branch_is_made_and_written_to(shared: Path, hub: Hub) -> None:
    assert push("export", "ann/arm", "--revision", "try/1").exit_code == 0
    branches = hub.repositories["ann/arm"].branches
    assert set(branches["try/1"]) == WEIGHTS
    assert not branches["main"]
    assert push("export", "ann/arm", "--revision", "try/1").exit_code == 0  # which is there already


def test_a_private_repository_is_made(shared: Path, hub: Hub) -> None:
    assert push("export", "ann/arm", "--private").exit_code == 0
    assert hub.repositories["ann/arm"].private
    assert push("export", "ann/arm", "--private").exit_code == 0


def test_an_own_card_is_uploaded_as_it_is(shared: Path, hub: Hub) -> None:
    (shared / "mine.md").write_text("---\ntags: [mine]\n---\n# Mine\n", encoding="utf-8")
    (shared / "export" / "README.md").write_text("of the base", encoding="utf-8")
    assert push("export", "ann/arm", "--card", "mine.md").exit_code == 0
    assert hub.repositories["ann/arm"].branches["main"]["README.md"] == (shared / "mine.md").read_bytes()


@pytest.mark.parametrize("target", ["run", "export"])
def test_a_dry_run_lists_the_files_and_prints_the_card_without_a_network(
    shared: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    (shared / "export" / "optimizer.pt").write_bytes(b"x")
    result = push(target, "ann/arm", "--dry-run")
    assert result.exit_code == 0, result.output
    listing, card = result.output.split("\n---\n", 1)
    sizes = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in listing.splitlines()[: len(WEIGHTS)]}
    assert set(sizes) == WEIGHTS
    assert sizes["model.safetensors"] == (shared / "export" / "model.safetensors").stat().st_size
    assert sizes["README.md"] == len(f"---\n{card}".encode())
    assert f"{sum(sizes.values()):,}  bytes in {len(WEIGHTS)} files for ann/arm" in listing
    assert ("stays here: optimizer.pt" in listing) == (target == "export")
    assert "## How to load it" in card
    assert hub.requests == []


@pytest.mark.slow
def test_the_program_talks_to_the_hub_of_hf_endpoint_and_shows_no_token(shared: Path, hub: Hub, tmp_path: Path) -> None:
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_DEBUG": "", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "vla_rl", "push", "export", "ann/arm"],
        cwd=shared, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(hub.repositories["ann/arm"].branches["main"]) == WEIGHTS
    assert TOKEN not in done.stdout + done.stderr


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repo", ["arm", "ann/arm/leg", "ann/", "https://huggingface.co/ann/arm", "ann/a--m", "a b/c"])
def test_a_malformed_name_is_refused_before_the_network(shared: Path, hub: Hub, repo: str) -> None:
    said = refused("run", repo)
    assert f"REPO: {repo!r} cannot be the name of a repository; expected USER/NAME" in said
    assert hub.requests == []


def test_without_a_token_the_way_to_one_is_told(shared: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    said = refused("run", "ann/arm")
    assert "no token of the Hugging Face hub was found: log in with `hf auth login`, or set HF_TOKEN" in said
    assert hub.requests == []


def test_a_token_that_is_wrong_or_may_only_read_is_refused(
    shared: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.role = "read"
    assert "the token 'laptop' may only read" in refused("run", "ann/arm")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the hub does not accept the token" in refused("run", "ann/arm")
    assert hub.repositories == {}


@pytest.mark.parametrize(
    "case",
    ["a namespace of somebody else", "a repository that the token may not write to"],
)
def test_a_repository_that_may_not_be_written_to_is_refused(shared: Path, hub: Hub, case: str) -> None:
    name = "bob/arm" if "somebody" in case else "ann/arm"
    if name == "ann/arm":
        hub.repositories[name] = Repository(private=False)
        hub.refuse["preupload"] = 403
    said = refused("run", name)
    assert f"the token may not write to {name}" in said
    assert "nothing was uploaded" in said


def test_a_public_repository_is_refused_where_a_private_one_was_asked_for(shared: Path, hub: Hub) -> None:
    hub.repositories["ann/arm"] = Repository(private=False)
    assert "--private: ann/arm exists and is public" in refused("run", "ann/arm", "--private")
    assert hub.repositories["ann/arm"].commits == []


def test_a_licence_that_the_hub_does_not_know_is_refused(shared: Path, hub: Hub) -> None:
    told = 'the hub refuses the card: "license" must be one of the list, not gratis; nothing was uploaded'
    assert told in refused("run", "ann/arm", "--license", "gratis")
    (shared / "mine.md").write_text("---\nlicense: gratis\n---\n# Mine\n", encoding="utf-8")
    assert told in refused("run", "ann/arm", "--card", "mine.md")
    assert "--license: 'my own' is no identifier" in refused("run", "ann/arm", "--license", "my own")


def test_a_network_that_is_down_is_told(shared: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    said = refused("run", "ann/arm")
    assert "the hub cannot be reached or does not answer as it should" in said
    assert "nothing was uploaded" in said


def test_a_hub_that_fails_is_told(shared: Path, hub: Hub) -> None:
    hub.refuse["whoami"] = 503
    assert "status 503" in refused("run", "ann/arm")


def test_an_upload_that_fails_on_its_way_leaves_the_repository_as_it_was(shared: Path, hub: Hub) -> None:
    hub.refuse["PUT"] = 400
    result = push("run", "ann/arm")
    assert result.exit_code == 1
    assert "the repository is as it was" in result.stderr
    assert hub.repositories["ann/arm"].branches["main"] == {}
    assert not list((shared / "run").glob(".tmp-push-*"))


@pytest.mark.parametrize("pattern", ["nothing/*", "../made/export/*", "/etc/hostname", ""])
def test_a_pattern_of_nothing_below_the_target_is_refused(shared: Path, hub: Hub, pattern: str) -> None:
    assert f"--include: {pattern!r} matches no file below run" in refused("run", "ann/arm", "--include", pattern)
    assert hub.requests == []


def test_what_is_no_policy_here_is_refused(shared: Path, hub: Hub) -> None:
    assert "nothing is no folder here; name a run" in refused("nothing", "ann/arm")
    assert "tiny is no folder here" in refused("tiny", "ann/arm")
    assert "--card: none.md is no file; `vla-rl card export --out FILE` writes one" in refused(
        "export", "ann/arm", "--card", "none.md"
    )
    assert hub.requests == []


def test_an_adapter_whose_base_only_this_machine_has_is_refused(shared: Path, hub: Hub) -> None:
    (shared / "adapter").mkdir()
    write_adapter_config(LoraSection(), shared / "adapter", base=str(shared / "export"), whole_modules=None)
    save_file({}, shared / "adapter" / "adapter_model.safetensors")
    said = refused("adapter", "ann/arm")
    assert f"base_model_name_or_path is '{shared / 'export'}', a folder of this machine" in said
    assert "`vla-rl export adapter --out merged`" in said
    assert hub.requests == []


def test_a_policy_without_a_layout_is_refused(shared: Path, hub: Hub) -> None:
    text = (shared / "run" / "recipe.yaml").read_text(encoding="utf-8")
    before, _, after = text.partition("policy:\n")
    kept = after[after.index("surrogate:") :]
    mlp = "policy: {name: mlp}\n"
    toy = before.partition("env:\n")[0] + "env: {name: toy}\n"
    (shared / "run" / "recipe.yaml").write_text(toy + mlp + kept, encoding="utf-8")
    assert "only 'openvla_oft' has a layout that other programs load" in refused("run", "ann/arm")
    assert hub.requests == []


def test_a_file_of_the_policy_cannot_be_replaced(shared: Path, hub: Hub) -> None:
    shutil.copy(shared / "run" / "manifest.json", shared / "run" / "config.json")
    result = push("run", "ann/arm", "--include", "config.json")
    assert result.exit_code == 2
    assert "--include: the policy has a file config.json itself" in result.stderr
    assert hub.repositories["ann/arm"].branches["main"] == {}
