"""`rollout.remote` before anything starts: what a recipe may say, and machines that are no use. No Ray runs here."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest
from ports import free_port
from ray_head import documented_start

from vla_rl.envs.libero.assets import resolve_assets
from vla_rl.envs.libero.check import simulated_with
from vla_rl.errors import UserError
from vla_rl.recipe import RecipeError, build_recipe, load_recipe
from vla_rl.remote.far_side import START_RAY, check_far_side
from vla_rl.remote.identity import differences
from vla_rl.remote.stand_in import FarSide
from vla_rl.run.assembly import make_cell, make_memory
from vla_rl.run.estimate import estimate
from vla_rl.run.plan import make_training_plan
from vla_rl.train import dry_run

TOY = """
name: t
env: {name: toy}
policy: {name: mlp}
surrogate: {name: gipo}
budget: {optimizer_steps: 10}
"""


def recipe(*overrides: str):
    return build_recipe(TOY, overrides)


@pytest.mark.parametrize(
    "address",
    ["cpu1", "cpu1:", ":10001", "cpu1:0", "cpu1:65536", "ray://cpu1:10001", "me@cpu1:10001", "cpu1:10001 ", "-x:1"],
)
def test_what_is_no_address_is_refused_with_the_form_of_one(address: str) -> None:
    with pytest.raises(RecipeError) as raised:
        recipe(f"rollout.remote=['{address}']")
    (problem,) = raised.value.problems
    assert problem.path == "rollout.remote[0]"
    assert "host:port" in problem.allowed


def test_addresses_are_names_or_numbers_with_a_port() -> None:
    found = ["cpu-1.lab.example:10001", "10.0.0.7:1", "localhost:65535"]
    assert recipe(f"rollout.remote={found}", "rollout.num_workers=3").rollout.remote == found


def test_one_process_simulates_by_itself() -> None:
    with pytest.raises(RecipeError, match=r"rollout\.remote: runtime\.mode 'serial' runs everything in one process"):
        recipe("rollout.remote=['a:1']", "runtime.mode=serial")


def test_simulators_elsewhere_are_decided_for_by_the_inference_worker() -> None:
    with pytest.raises(RecipeError) as raised:
        recipe("rollout.remote=['cpu1:10001']", "rollout.inference=local")
    (problem,) = raised.value.problems
    assert (problem.path, problem.allowed) == ("rollout.inference", "shared, or rollout.remote=[]")


def test_only_the_inference_worker_compiles() -> None:
    with pytest.raises(RecipeError) as raised:
        recipe("rollout.inference=local", "rollout.compile=true")
    (problem,) = raised.value.problems
    assert problem.path == "rollout.compile"


def test_a_machine_without_a_worker_would_be_idle() -> None:
    with pytest.raises(RecipeError) as raised:
        recipe("rollout.remote=['a:1', 'b:1', 'c:1']", "rollout.num_workers=2")
    assert [problem.path for problem in raised.value.problems] == ["rollout.num_workers"]
    ranks = ("learner.strategy=ddp", "learner.num_ranks=2")
    assert recipe("rollout.remote=['a:1', 'b:1', 'c:1']", "rollout.num_workers=2", *ranks).rollout.num_workers == 2


def test_without_ray_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.yaml").write_text(TOY, encoding="utf-8")
    installed = metadata.version

    def version(package: str) -> str:
        if package == "ray":
            raise metadata.PackageNotFoundError
        return installed(package)

    monkeypatch.setattr(metadata, "version", version)
    assert load_recipe(tmp_path / "t.yaml", ["rollout.remote=['a:1']"]).rollout.remote == ["a:1"]  # may be evaluated
    with pytest.raises(RecipeError) as raised:
        load_recipe(tmp_path / "t.yaml", ["rollout.remote=['a:1']"], runs_here=True)
    (problem,) = raised.value.problems
    assert (problem.path, problem.hint) == ("rollout.remote", "pip install 'vla-rl[remote]'")


def test_workers_are_dealt_out_in_turn_over_all_ranks(tmp_path: Path) -> None:
    plan = make_training_plan(
        recipe("rollout.remote=['a:1', 'b:1']", "rollout.num_workers=3", "learner.strategy=ddp", "learner.num_ranks=2")
    )
    addresses = []
    for rank in range(2):
        memory = make_memory(plan, plan.policy.build(device="cpu"), ring_capacity=4096)
        cell = make_cell(
            plan, plan.env, memory, log_dir=tmp_path, greedy=False, seed=0, on_episode=print, rank=rank, num_ranks=2
        )
        for state in cell._workers:
            (builder,) = state.settings.builders
            (far,) = [part for part in builder.args if isinstance(part, FarSide)]
            assert (far.step_timeout_s, far.start_timeout_s) == (120.0, 300.0)
            assert state.settings.slot_limit_s > 120.0 + 3 * 300.0  # a chunk, then connection, building and reset
            addresses.append(far.address)
        cell.close()
        memory.close()
    assert addresses == ["a:1", "b:1", "a:1", "b:1", "a:1", "b:1"]


def test_a_dry_run_says_how_many_simulators_each_machine_gets_and_counts_none_here() -> None:
    plan = make_training_plan(
        recipe(
            "rollout.remote=['a:1', 'b:1', 'a:1']", "rollout.num_workers=4", "rollout.envs_per_worker=5",
            "rollout.start_timeout_s=7", "replay.capacity=100000",
        )
    )  # fmt: skip
    said = {line.what: line.value for line in estimate(plan, num_ranks=2).lines}
    assert said["simulators"] == "25 on a:1, 15 on b:1"  # a b a a b a a b
    assert said["host: env workers"] == "about 560 MiB, 140 MiB each"


def test_differences_of_two_machines_are_named_with_both_values() -> None:
    here = {"numpy": "2.4", "mujoco": "3.3.0", "assets": "full 1a"}
    there = {"numpy": "2.4", "mujoco": "3.3.1", "robosuite": "1.4.0"}
    assert differences(here, there) == [
        "mujoco: 3.3.1 there, 3.3.0 here",
        "assets: not installed there, full 1a here",
        "robosuite: 1.4.0 there, not installed here",
    ]
    assert differences(here, dict(reversed(here.items()))) == []


def test_the_documented_command_is_the_one_that_errors_tell_to_type() -> None:
    assert shlex.split(START_RAY) == documented_start()


@contextmanager
def listener(answer: bytes) -> Iterator[str]:
    """Something that listens and is no Ray; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    taken, _ = server.accept()
                except OSError:
                    return
                with taken:
                    taken.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_all_machines_that_do_not_answer_are_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    with pytest.raises(UserError) as raised:
        dry_run(recipe(f"rollout.remote={addresses}", "rollout.num_workers=2"))
    lines = str(raised.value).splitlines()
    assert len(lines) == 2
    for line, address in zip(lines, addresses, strict=True):
        assert line.startswith(
            f"rollout.remote: {address} cannot be reached: Connection refused. Fix: start Ray there ("
        )


def test_a_machine_is_not_asked_without_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with listener(b"") as address, pytest.raises(UserError, match=r"needs Ray's token.*ray get-auth-token --generate"):
        check_far_side([address], dict)


def test_what_listens_but_is_no_ray_is_told_from_a_wrong_token(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("grpc", reason="the extra remote is not installed: pip install 'vla-rl[remote]'")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 32)
    with listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as address, pytest.raises(UserError) as raised:
        check_far_side([address], dict)
    assert "answers, but not as Ray's client server" in str(raised.value)
    assert os.environ["RAY_AUTH_TOKEN"] not in str(raised.value)


@pytest.mark.libero
def test_assets_of_libero_count_by_what_is_in_the_folder_not_by_its_place(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(resolve_assets("proxy").folder, copy)
    here = simulated_with("proxy")
    assert simulated_with(str(copy)) == here
    assert {"mujoco", "robosuite", "hf-libero", "bddl", "assets"} == set(here)
    texture = next(copy.rglob("*.png"))
    texture.write_bytes(texture.read_bytes() + b"\0")
    assert differences(here, simulated_with(str(copy)))[0].startswith("assets: proxy ")


def test_an_environment_names_the_packages_that_decide_about_its_episodes() -> None:
    assert recipe().env.plan(render_size=0).identity() == {}
    pytest.importorskip("metaworld", reason="the extra metaworld is not installed")
    metaworld = recipe("env={name: metaworld, tasks: [reach-v3]}")
    assert set(metaworld.env.plan(render_size=0).identity()) == {"mujoco", "metaworld", "gymnasium"}
