"""The probes on the simulator that is installed. Their proof on other versions is in `envs/libero/probes.py`."""

import importlib.util
import struct
import zlib

import pytest

from vla_rl.doctor import simulator
from vla_rl.envs.libero import probes


def pinned():
    if importlib.util.find_spec("libero") is None:
        return False
    from vla_rl.envs.libero import shim

    return shim.versions() == shim.PINNED


@pytest.mark.libero
def test_the_pinned_simulator_passes_every_probe():
    if not pinned():
        pytest.skip("needs the pinned versions of LIBERO's simulator")
    started = simulator.check_import()
    if started.status != "ok":
        pytest.skip(f"the simulator does not start: {started.found}")
    checks = [simulator.check_settling(), simulator.check_floor(), simulator.check_texture()]
    assert [check.status for check in checks] == ["ok", "ok", "ok"], checks


def test_a_marked_png_is_one_that_readers_accept(tmp_path):
    from PIL import Image

    file = tmp_path / "grey.png"
    file.write_bytes(probes.marked_png(128))
    assert b"sRGB" + b"\0" + struct.pack(">I", zlib.crc32(b"sRGB\0")) in file.read_bytes()
    with Image.open(file) as image:
        assert image.size == (8, 8)
        assert image.getextrema() == ((128, 128),) * 3
