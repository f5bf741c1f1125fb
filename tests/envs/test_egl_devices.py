"""A rank's simulators draw on the GPU that it computes on, whatever number EGL gives it."""

import os
from types import SimpleNamespace

import pytest

from vla_rl.envs.libero.egl_devices import egl_device, variables_to_draw_on
from vla_rl.workers.env_worker import set_variables

BUSES = [0x17, 0x65, 0xB3]  # by CUDA number
EGL = [None, "0000:b3:00.0", "0000:65:00.0", "0000:17:00.0"]  # a software device first, the GPUs in reverse


@pytest.fixture(autouse=True)
def three_gpus(monkeypatch):
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(
        "torch.cuda.get_device_properties",
        lambda index: SimpleNamespace(pci_domain_id=0, pci_bus_id=BUSES[index], pci_device_id=0),
    )


def test_every_rank_draws_on_its_own_gpu():
    assert [egl_device(f"cuda:{rank}", ask=lambda: EGL) for rank in range(3)] == [3, 2, 1]


def test_without_buses_the_gpu_has_its_number_without_the_variable(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert [egl_device(f"cuda:{rank}", ask=lambda: [None] * 4) for rank in range(2)] == [2, 0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f4c,GPU-77aa")
    assert egl_device("cuda:1", ask=lambda: [None] * 4) == 1


def test_a_gpu_that_egl_does_not_know_is_no_device():
    assert egl_device("cuda:2", ask=lambda: [None]) is None
    assert egl_device("cuda:0", ask=list) is None


def test_a_cpu_and_the_users_own_choice_leave_nothing_to_choose(monkeypatch):
    assert egl_device("cpu", ask=lambda: EGL) is None
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "0")
    assert egl_device("cuda:1", ask=lambda: EGL) is None


def test_the_choice_is_what_robosuite_reads(monkeypatch):
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "0")  # put back by monkeypatch
    set_variables(variables_to_draw_on("cuda:1", gl="egl"))  # which leaves the user's own
    assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "0"
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID")
    monkeypatch.setattr("vla_rl.envs.libero.egl_devices.egl_device", lambda device: {"cuda:1": 2}[device])
    assert variables_to_draw_on("cuda:1", gl="osmesa") == {}
    set_variables(variables_to_draw_on("cuda:1", gl="egl"))
    assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "2"
