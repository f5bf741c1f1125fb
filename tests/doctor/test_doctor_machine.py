"""GPUs, renderers and the hub, on machines that are not here."""

import json
from types import SimpleNamespace

import pytest
import torch

from vla_rl.doctor import accelerators
from vla_rl.doctor.accelerators import check_egl_devices, check_gpus, check_import
from vla_rl.doctor.graphics import check_renderers, check_users_choice
from vla_rl.doctor.internet import check_hub
from vla_rl.envs.libero.egl_devices import egl_index, pci_bus_of
from vla_rl.envs.libero.gl import Probe
from vla_rl.errors import SimulatorError

BUSES = ["0000:17:00.0", "0000:65:00.0"]
TWO_GPUS = json.dumps(
    {"torch": "2.8.0+cu128", "gpus": [{"name": "NVIDIA H200", "memory": 150 * 2**30, "bus": bus} for bus in BUSES]}
)
NO_GPU = json.dumps({"torch": "2.8.0+cpu", "gpus": []})


@pytest.fixture
def driver(tmp_path):
    file = tmp_path / "version"
    file.write_text("NVRM", encoding="utf-8")
    return file


def test_gpus_are_told_with_their_memory(child, tmp_path):
    check = check_gpus(run=child(TWO_GPUS), driver=tmp_path / "none")
    assert (check.status, check.found) == ("ok", "2: NVIDIA H200 (150 GiB), NVIDIA H200 (150 GiB)")


def test_no_gpu_is_fine_without_a_driver_and_a_warning_with_one(child, tmp_path, driver):
    assert check_gpus(run=child(NO_GPU), driver=tmp_path / "none").status == "ok"
    check = check_gpus(run=child(NO_GPU), driver=driver)
    assert check.status == "warning"
    assert "2.8.0+cpu" in check.found


def test_a_missing_torch_is_told(child, tmp_path):
    check = check_gpus(run=child(fail="ModuleNotFoundError: No module named 'torch'"), driver=tmp_path / "none")
    assert check.status == "failed"
    assert "No module named 'torch'" in check.found


@pytest.mark.parametrize(
    ("egl", "found"),
    [
        (BUSES, "CUDA 0 is EGL 0, CUDA 1 is EGL 1"),
        ([BUSES[1].upper(), BUSES[0], None], "CUDA 0 is EGL 1, CUDA 1 is EGL 0"),
        ([None, None, None], "CUDA 0 is EGL 0, CUDA 1 is EGL 1"),
    ],
)
def test_a_gpu_is_found_in_egl_by_its_bus(child, driver, egl, found):
    check = check_egl_devices(run=child(TWO_GPUS, json.dumps(egl)), driver=driver)
    assert (check.status, check.found) == ("ok", found)


def test_a_gpu_that_torch_sees_and_cannot_use_is_a_failure(child, tmp_path):
    gpus = json.loads(TWO_GPUS)
    gpus["gpus"][1]["failure"] = "CUDA error: no kernel image is available for execution on the device"
    check = check_gpus(run=child(json.dumps(gpus)), driver=tmp_path / "none")
    assert check.status == "failed"
    assert "cannot compute on GPU 1 (NVIDIA H200): CUDA error: no kernel image" in check.found
    assert "CUDA_VISIBLE_DEVICES" in check.fix


@pytest.mark.parametrize("computes", [True, False])
def test_gpus_are_computed_on_only_where_that_is_asked(monkeypatch, capsys, computes):
    """Those of other users are compared with their EGL devices too."""
    card = SimpleNamespace(name="card", total_memory=1)

    def no_kernel(*_size, device):
        raise RuntimeError(f"no kernel image for {device}")

    monkeypatch.setattr(torch, "zeros", no_kernel)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: card)
    exec(accelerators._gpus(computes=computes), {})
    (gpu,) = json.loads(capsys.readouterr().out)["gpus"]
    assert gpu["failure"] == ("no kernel image for cuda:0" if computes else "")


def test_all_gpus_are_compared_whatever_is_visible(child, driver):
    fake = child(NO_GPU)
    assert check_egl_devices(run=fake, driver=driver).status == "skipped"
    assert fake.asked[0][1]["CUDA_VISIBLE_DEVICES"].startswith("0,1,2")


def test_an_egl_that_cannot_be_asked_is_no_fault_of_the_mapping(child, driver):
    check = check_egl_devices(run=child(TWO_GPUS, fail="ImportError: no EGL"), driver=driver)
    assert check.status == "skipped"


def test_a_bus_that_no_egl_device_has_keeps_the_number():
    assert egl_index("0000:17:00.0", cuda_index=3, egl_buses=[None, "0000:65:00.0"]) == 3


def test_the_bus_of_a_device_file_is_what_the_kernel_says(tmp_path):
    (tmp_path / "devices" / "0000:65:00.0").mkdir(parents=True)
    card = tmp_path / "drm" / "card1"
    card.mkdir(parents=True)
    (card / "device").symlink_to(tmp_path / "devices" / "0000:65:00.0")
    assert pci_bus_of("/dev/dri/card1", sysfs=tmp_path / "drm") == "0000:65:00.0"
    assert pci_bus_of("/dev/dri/card7", sysfs=tmp_path / "drm") is None


def test_an_import_that_fails_is_told_with_its_last_line(child):
    fake = child(fail="RuntimeError: operator torchvision::nms does not exist")
    check = check_import("transformers", package="packaging", run=fake)
    assert (check.status, check.found) == ("failed", "RuntimeError: operator torchvision::nms does not exist")
    assert check_import("nothing", package="a-package-that-is-not-installed", run=fake).status == "skipped"


def renderers(works, *, reasons=None, has_driver=False):
    reasons = reasons or {}

    def choose(backend):
        if backend in works:
            return backend
        why = reasons.get(backend, f"lib{backend} is not installed")
        raise SimulatorError(f"no renderer works, tried {backend}: {why}. Fix: apt-get install -y lib{backend}")

    return check_renderers(choose=choose, probe=lambda name: Probe(works[name], ""), has_driver=has_driver)


def test_one_renderer_is_enough():
    egl, osmesa = renderers({"egl": "llvmpipe (LLVM 15)"})
    assert (egl.status, egl.found) == ("ok", "llvmpipe (LLVM 15)")
    assert (osmesa.status, osmesa.fix) == ("skipped", "")
    assert osmesa.found == "libosmesa is not installed; not needed, egl works"


def test_without_any_renderer_both_fail_with_their_packages():
    checks = renderers({})
    assert [check.status for check in checks] == ["failed", "failed"]
    assert [check.fix for check in checks] == ["apt-get install -y libegl", "apt-get install -y libosmesa"]


def test_drawing_on_the_cpu_beside_a_gpu_is_a_warning():
    assert renderers({"egl": "llvmpipe (LLVM 15)"}, has_driver=True)[0].status == "warning"
    assert renderers({"egl": "NVIDIA H200/PCIe/SSE2"}, has_driver=True)[0].status == "ok"


def test_without_mujoco_no_renderer_is_accused():
    reasons = {"egl": "it is there, but ModuleNotFoundError: No module named 'mujoco'"}
    assert [check.status for check in renderers({}, reasons=reasons)] == ["skipped", "skipped"]


@pytest.mark.parametrize(
    ("value", "works", "status"), [("", False, "ok"), ("glfw", False, "failed"), ("EGL", True, "ok")]
)
def test_the_user_s_renderer_must_draw(value, works, status):
    def probe(_name):
        return Probe("llvmpipe", "") if works else Probe(None, "no display")

    assert check_users_choice(probe=probe, variables={"MUJOCO_GL": value}).status == status


def test_the_hub_never_fails(child):
    assert check_hub(run=child("yes"), variables={}).status == "ok"
    assert check_hub(run=child(fail="no answer within 8 s"), variables={}).status == "skipped"
    mirror = child("yes")
    assert "https://mirror" in check_hub(run=mirror, variables={"HF_ENDPOINT": "https://mirror"}).found
    assert mirror.asked == [(("https://mirror",), {})]
    asked = child()
    assert check_hub(run=asked, variables={"HF_HUB_OFFLINE": "1"}).status == "skipped"
    assert asked.asked == []


def test_why_the_hub_cannot_be_reached_is_said_in_plain_words():
    check = check_hub(variables={"HF_ENDPOINT": "http://127.0.0.1:9"})  # nobody listens there
    assert "cannot be reached (Connection refused)" in check.found
