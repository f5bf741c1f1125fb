"""Every command of the documents that ends in --dry-run is run as it stands there, and writes nothing."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from sft_demos import write_demos
from typer.testing import CliRunner

from vla_rl.cli.main import app
from vla_rl.policies.kind import PolicyContext
from vla_rl.policies.openvla_oft.build import build_openvla_oft
from vla_rl.policies.openvla_oft.checkpoint_writer import write_checkpoint
from vla_rl.policies.openvla_oft.section import OpenVLAOFTSection

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md")))
LEFT_OUT = ("vla-rl push", "random-7b")  # tests/sharing runs one; the other needs as much memory as a 7B run


def commands() -> list[str]:
    """Commands of the blocks marked `sh`, each once, without their comments."""
    found = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            found += [line.split(" #")[0].strip() for line in block.splitlines()]
    return sorted({line for line in found if line.startswith("vla-rl") and line.endswith("--dry-run")})


COMMANDS = [line for line in commands() if not any(part in line for part in LEFT_OUT)]


def test_dry_runs_of_all_verbs_that_have_them_are_found() -> None:
    assert {line.split()[1] for line in COMMANDS} == {"train", "sft", "study", "demos"}
    assert {line.split()[2] for line in COMMANDS if " study " in line} == {"metaworld", "libero", "groups"}


@pytest.fixture(scope="session")
def places(tmp_path_factory) -> Path:
    """A folder in which the placeholders of the pages exist."""
    folder = tmp_path_factory.mktemp("documented")
    write_demos(folder / "path" / "to" / "demonstrations")
    section = OpenVLAOFTSection(name="openvla_oft", image_size=28, lora=None, train_backbone=True)
    context = PolicyContext(seed=0, suite="libero_spatial", tasks=("pick up the bowl",), num_images=1)
    checkpoint = folder / "path" / "to" / "checkpoint"
    checkpoint.mkdir()
    write_checkpoint(build_openvla_oft(section, context, device="cpu", empty=False), checkpoint, step=1)
    return folder


@pytest.mark.libero
@pytest.mark.parametrize("line", COMMANDS)
def test_a_documented_dry_run_succeeds_and_writes_nothing(
    line: str, places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(places)
    before = sorted(places.rglob("*"))
    done = CliRunner().invoke(app, shlex.split(line)[1:])
    assert done.exit_code == 0, done.output
    assert done.output.strip()
    assert sorted(places.rglob("*")) == before
