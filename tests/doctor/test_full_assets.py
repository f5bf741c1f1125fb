"""Folders of assets: complete, damaged, downloaded."""

import shutil
import xml.etree.ElementTree as ET

import pytest

from vla_rl.envs.libero import full_assets
from vla_rl.envs.libero.assets import resolve_assets
from vla_rl.envs.libero.full_assets import check_tasks, completeness, download, downloaded_folder, missing_files
from vla_rl.envs.libero.proxy.generate import proxy_folder
from vla_rl.errors import SimulatorError

BOWL = "stable_scanned_objects/akita_black_bowl/akita_black_bowl.xml"


@pytest.fixture
def folder(tmp_path):
    """A folder in LIBERO's layout to damage: the primitives have it too."""
    return shutil.copytree(proxy_folder(), tmp_path / "assets")


def problems_by_task(folder):
    return {(c.task.suite, c.task.task_id): c.problems for c in check_tasks(folder) if c.problems}


def write_object(folder, asset):
    (folder / BOWL).write_text(f"<mujoco><asset>{asset}</asset><worldbody/></mujoco>", encoding="utf-8")


@pytest.mark.libero
def test_a_complete_folder_has_no_problems(folder):
    assert len(check_tasks(folder)) == 40
    assert missing_files(folder) == []


@pytest.mark.libero
def test_a_missing_object_is_told_for_the_tasks_that_use_it_alone(folder):
    (folder / BOWL).unlink()
    found = problems_by_task(folder)
    assert len(found) == 21  # ten of Spatial, ten of Goal, one of Long
    assert set(found.values()) == {("akita_black_bowl.xml is missing",)}
    assert not any(suite == "libero_object" for suite, _ in found)
    assert missing_files(folder) == ["akita_black_bowl.xml is missing"]


@pytest.mark.libero
@pytest.mark.parametrize(
    ("content", "problem"),
    [("<mujoco><worldbody>", "is not XML"), ("", "is not XML"), ("<html/>", "is not MJCF: its root is <html>")],
)
def test_a_file_that_is_no_mjcf_is_told(folder, content, problem):
    (folder / BOWL).write_text(content, encoding="utf-8")
    (fault,) = missing_files(folder)
    assert fault.startswith(f"{BOWL}: {problem}")


@pytest.mark.libero
def test_a_mesh_or_texture_that_is_missing_or_empty_is_told(folder):
    write_object(folder, '<mesh name="a" file="visual/bowl.obj"/><texture name="t" file="bowl.png"/>')
    (folder / BOWL).with_name("bowl.png").touch()
    assert missing_files(folder) == [f"{BOWL}: {file} is missing or empty" for file in ("visual/bowl.obj", "bowl.png")]
    (folder / BOWL).with_name("bowl.png").write_bytes(b"x")
    assert len(missing_files(folder)) == 1


@pytest.mark.libero
def test_of_equal_names_the_first_is_opened(folder):
    """As LIBERO's own stove has it: the second texture of a name does not exist and is never opened."""
    (folder / BOWL).with_name("bowl.png").write_bytes(b"x")
    write_object(folder, '<texture name="t" file="bowl.png"/><texture name="t" file="gone.png"/>')
    assert missing_files(folder) == []


@pytest.mark.libero
def test_a_room_needs_the_textures_that_libero_puts_into_it(folder):
    (folder / "textures" / "yellow_linen_wall_texture.png").unlink()
    found = problems_by_task(folder)
    assert len(found) == 4  # the kitchens of Long
    room = folder / "scenes" / "libero_floor_base_style.xml"
    tree = ET.parse(room)
    floor = tree.find("./asset/texture[@name='texplane']")
    floor.set("file", "../textures/never_opened.png")
    tree.write(room)
    assert len(problems_by_task(folder)) == 4


@pytest.mark.libero
def test_completeness_is_counted_by_suite(folder):
    before = completeness(folder)
    assert list(before) == ["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"]
    assert [before[suite].split()[:3] for suite in list(before)[:4]] == [["10", "of", "10"]] * 4
    (folder / BOWL).unlink()
    after = completeness(folder)
    assert [after[suite].split()[0] for suite in list(after)[:4]] == ["0", "10", "0", "9"]
    assert int(after["libero_90"].split()[0]) < int(before["libero_90"].split()[0]) < 90


def fetch(folder):
    shutil.copytree(proxy_folder(), folder, dirs_exist_ok=True)
    (folder / ".cache" / "huggingface").mkdir(parents=True)


@pytest.mark.libero
def test_a_download_is_there_at_the_end_and_made_once():
    target = download(fetch)
    assert target == downloaded_folder()
    assert missing_files(target) == []
    assert not (target / ".cache").exists()
    assert download(lambda _: pytest.fail("fetched twice")) == target


@pytest.mark.libero
def test_an_incomplete_download_is_no_folder_of_assets_and_is_completed_by_the_next():
    def half(folder):
        fetch(folder)
        (folder / BOWL).unlink()

    with pytest.raises(SimulatorError, match=r"not complete: 1 problems.*akita_black_bowl"):
        download(half)
    assert not downloaded_folder().exists()

    def rest(folder):
        assert (folder / "scenes").is_dir()  # what came before is kept
        shutil.copytree(proxy_folder(), folder, dirs_exist_ok=True)

    assert missing_files(download(rest)) == []


def test_a_failed_download_leaves_nothing_to_be_taken_for_assets():
    def offline(_folder):
        raise SimulatorError("no network")

    with pytest.raises(SimulatorError, match="no network"):
        download(offline)
    assert not downloaded_folder().exists()
    assert resolve_assets("auto").kind == "proxy"


def test_two_downloads_at_once_are_refused():
    def again(_folder):
        with pytest.raises(SimulatorError, match="another download is running"):
            download(again)
        raise SimulatorError("enough")

    with pytest.raises(SimulatorError, match="enough"):
        download(again)


def test_offline_the_hub_s_error_names_the_ways_out(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def refuse(*_args, **_kwargs):
        raise ConnectionError("Name or service not known\nlong trace")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(
        SimulatorError, match=r"lerobot/libero-assets .* service not known\. Fix: .*VLA_RL_LIBERO_ASSETS"
    ):
        full_assets.fetch_from_hub(tmp_path)


def test_only_data_is_asked_of_the_hub(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = {}
    monkeypatch.setattr(hub, "snapshot_download", lambda repo, **options: asked.update(options, repo=repo))
    full_assets.fetch_from_hub(tmp_path)
    assert asked["local_dir"] == tmp_path
    assert {"*.py", "*"}.isdisjoint(asked["allow_patterns"])


def test_the_reason_of_a_choice_is_told(monkeypatch, folder):
    assert "is not set" in full_assets.why_chosen(resolve_assets("auto"))
    monkeypatch.setenv("VLA_RL_LIBERO_ASSETS", str(folder))
    assert full_assets.why_chosen(resolve_assets("auto")) == "$VLA_RL_LIBERO_ASSETS names it"
