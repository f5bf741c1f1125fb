"""One frame, and then some more, drawn by MuJoCo through EGL: by the card, or by a CPU that stands in for it?"""

from __future__ import annotations

import os
import time

import numpy as np

from gpu_check_parts.record import Record, Setting

SIZE = 256  # pixels a side, as the simulators draw
FRAMES = 50
SOFTWARE = ("llvmpipe", "softpipe", "swrast", "swr")
SCENE = """
<mujoco>
  <worldbody>
    <light pos="0 0 3"/>
    <geom type="plane" size="1 1 .1" rgba=".2 .6 .3 1"/>
    <body pos="0 0 .4"><freejoint/><geom type="box" size=".2 .1 .1" rgba=".8 .1 .1 1"/></body>
    <camera name="front" pos="0 -2 1.2" xyaxes="1 0 0 0 .5 1"/>
  </worldbody>
</mujoco>
"""


def measure(record: Record, setting: Setting) -> None:  # noqa: ARG001 - every phase takes both
    """Draw."""
    import torch

    has_gpu = torch.cuda.is_available()
    os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = "egl"
    from vla_rl.envs.libero.egl_devices import device_to_draw_on

    os.environ["MUJOCO_EGL_DEVICE_ID"] = device_to_draw_on()
    record.put("egl_device", os.environ["MUJOCO_EGL_DEVICE_ID"])
    import mujoco
    from OpenGL import GL

    record.put("mujoco", mujoco.__version__)
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    with mujoco.Renderer(model, SIZE, SIZE) as renderer:
        renderer.update_scene(data, "front")
        frame = renderer.render()
        for name, constant in (("vendor", GL.GL_VENDOR), ("renderer", GL.GL_RENDERER), ("version", GL.GL_VERSION)):
            record.put(name, GL.glGetString(constant).decode())
        began = time.perf_counter()
        for _ in range(FRAMES):
            mujoco.mj_step(model, data)
            renderer.update_scene(data, "front")
            renderer.render()
        record.put("frame_ms", 1e3 * (time.perf_counter() - began) / FRAMES)
    colours = len(np.unique(frame.reshape(-1, 3), axis=0))
    record.check("the frame shows something", colours > 3, f"{colours} colours")
    if has_gpu:
        by_cpu = any(word in record.figures["renderer"] for word in SOFTWARE)
        record.check("the card draws", not by_cpu, f"drawn by {record.figures['renderer']}")
