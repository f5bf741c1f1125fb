"""`vla-rl watch`: what it refuses before it serves anything. What it serves is tested in tests/watch."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vla_rl.cli.main import app
from vla_rl.cli.watch import MOST_RUNS


def refusal(*arguments: object) -> str:
    """What is said; without the refusal another host would be refused, so that nothing is ever served."""
    result = CliRunner().invoke(app, ["watch", "--host", "0.0.0.0", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    return result.output


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "toy"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").touch()
    return folder


def test_what_is_no_run_is_named_with_what_to_do(tmp_path: Path, run_dir: Path) -> None:
    assert "found no such folder; `vla-rl runs` lists them" in refusal(run_dir, tmp_path / "none")
    assert f"{run_dir / 'recipe.yaml'}: expected the folder of a run, found a file" in refusal(run_dir / "recipe.yaml")
    assert f"found a folder of runs; name them: {run_dir}" in refusal(run_dir.parent)
    (tmp_path / "empty").mkdir()
    assert "found no run in it; `vla-rl runs DIR` lists runs" in refusal(tmp_path / "empty")


def test_a_run_is_named_once_and_not_too_many_are(run_dir: Path) -> None:
    assert "named twice" in refusal(run_dir, run_dir.parent / "." / "toy")
    assert f"at most {MOST_RUNS} runs fit on one page, found 99" in refusal(*[run_dir] * 99)


def test_another_host_and_a_port_in_use_are_refused(run_dir: Path) -> None:
    assert "--host: the page is served to this machine alone, found 0.0.0.0" in refusal(run_dir)
    assert "65535" in refusal(run_dir, "--port", 65536)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        output = refusal(run_dir, "--port", port, "--host", "127.0.0.1")
    assert f"--port: port {port} is in use, perhaps by another watch; --port 0 takes any that is free" in output
