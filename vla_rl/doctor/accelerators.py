"""Checks of GPUs and of packages that are slow or fragile to import, each in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vla_rl.doctor.packages import INSTALL, installed_version
from vla_rl.doctor.record import Check
from vla_rl.envs.libero.child import Outcome, run_python
from vla_rl.envs.libero.egl_devices import ask_egl_pci_buses, egl_index

IMPORT_SECONDS = 180.0
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")

_GPUS = """
import json, torch

def failure(index):
    try:
        torch.zeros(1, device=f"cuda:{index}").add_(1).cpu()
    except RuntimeError as error:
        return str(error).strip().splitlines()[0]
    return ""

props = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
print(json.dumps({
    "torch": torch.__version__,
    "gpus": [
        {
            "name": p.name,
            "memory": p.total_memory,
            "bus": "%04x:%02x:%02x.0" % (p.pci_domain_id, p.pci_bus_id, p.pci_device_id)
            if hasattr(p, "pci_bus_id") else "",
            "failure": failure(index) if computes else "",
        }
        for index, p in enumerate(props)
    ],
}))
"""

Run = Callable[..., Outcome]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device."""

    name: str
    memory: int  # bytes
    bus: str  # PCI address, like 0000:65:00.0; empty if torch does not report it
    failure: str = ""  # of a first sum there; empty if it succeeded, or was not tried


def check_gpus(*, run: Run = run_python, driver: Path = NVIDIA_DRIVER) -> Check:
    """Report the GPUs that torch sees and can compute on; none is fine unless there is an NVIDIA driver."""
    outcome = run(_gpus(computes=True), seconds=IMPORT_SECONDS)
    if not outcome.ok:
        return Check("gpus", "failed", f"torch cannot be used: {outcome.reason}", "", INSTALL)
    answer = json.loads(outcome.output)
    gpus = [Gpu(**gpu) for gpu in answer["gpus"]]
    broken = [f"GPU {index} ({gpu.name}): {gpu.failure}" for index, gpu in enumerate(gpus) if gpu.failure]
    if broken:
        found = f"torch {answer['torch']} cannot compute on {'; '.join(broken)}"
        fix = "install a torch built for this card and driver, or leave the card out with CUDA_VISIBLE_DEVICES"
        return Check("gpus", "failed", found, "", fix)
    if gpus:
        shown = ", ".join(f"{gpu.name} ({gpu.memory / 2**30:.0f} GiB)" for gpu in gpus)
        return Check("gpus", "ok", f"{len(gpus)}: {shown}")
    if driver.exists():
        found = f"an NVIDIA driver is here, but torch {answer['torch']} sees no GPU"
        fix = "install a torch built for this driver's CUDA (pip's index decides), and check CUDA_VISIBLE_DEVICES"
        return Check("gpus", "warning", found, "", fix)
    return Check("gpus", "ok", "none: everything runs on CPUs, a 7B policy too slowly to train")


def _gpus(*, computes: bool) -> str:
    """Return the program that lists the GPUs. It computes on each if asked to, which takes memory there."""
    return f"computes = {computes}\n{_GPUS}"


def check_egl_devices(*, run: Run = run_python, driver: Path = NVIDIA_DRIVER) -> Check:
    """Report each GPU's EGL number: a rank's simulators render on the GPU that it computes on."""
    name = "egl devices"
    if not driver.exists():
        return Check(name, "skipped", "no NVIDIA driver")
    seen = run(
        _gpus(computes=False), seconds=IMPORT_SECONDS, variables={"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(64)))}
    )
    gpus = [Gpu(**gpu) for gpu in json.loads(seen.output)["gpus"]] if seen.ok else []
    if not gpus:
        return Check(name, "skipped", "no GPU")
    buses = ask_egl_pci_buses(run=run)
    if not buses:
        return Check(name, "skipped", "EGL reports no device")
    pairs = {cuda: egl_index(gpu.bus, cuda_index=cuda, egl_buses=buses) for cuda, gpu in enumerate(gpus)}
    found = ", ".join(f"CUDA {cuda} is EGL {egl}" for cuda, egl in pairs.items())
    return Check(name, "ok", found)


def check_import(module: str, *, package: str, run: Run = run_python) -> Check:
    """Report whether an installed package can be imported, in a clean process."""
    name = f"import {module}"
    if installed_version(package) is None:
        return Check(name, "skipped", f"{package} is not installed")
    outcome = run(f"import {module}", seconds=IMPORT_SECONDS)
    if outcome.ok:
        return Check(name, "ok", "works")
    return Check(name, "failed", outcome.reason, "", f"repair what it names, or reinstall: {INSTALL}")
