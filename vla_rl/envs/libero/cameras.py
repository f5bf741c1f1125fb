"""Cameras that record the scene at once but render it only on request."""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from collections.abc import Iterator, Set
from typing import Any

import numpy as np

from vla_rl.envs.libero import shim
from vla_rl.types import UInt8Array

MAX_GEOMS = 1000  # as robosuite's own scenes


class Cameras:
    """Off-screen cameras on one simulation, whose graphics context outlives the simulation's resets.

    `look` takes MuJoCo's abstract scenes, lists of placed geoms (0.1 ms each); `draw` turns them into pixels (tens of
    milliseconds without a graphics card). A reset of LIBERO makes a new model of the same assets, for which robosuite
    would upload every mesh and texture again; here only the scenes are replaced.
    """

    def __init__(self, libraries: shim.Libraries, *, names: tuple[str, ...], image_size: int) -> None:
        """Store the settings. The graphics context is created when the first frame is drawn.

        Args:
            libraries: result of `shim.load`.
            names: names of the cameras in the model.
            image_size: pixels per side.
        """
        self._mujoco = libraries.mujoco
        self._make_gl_context = libraries.gl_context
        self._names = names
        self._image_size = image_size
        self._gl_context: Any = None
        self._render_context: Any = None
        self._model: Any = None
        self._data: Any = None
        self._views: list[tuple[Any, Any]] = []  # camera and scene
        self._frames: UInt8Array | None = None
        self._stale: set[int] = set()  # textures that the graphics have otherwise than the model
        self._repainted: frozenset[int] = frozenset()  # textures of the model that differ from the assets
        self._shadow_size = 0  # texels of the graphics' shadow map
        self._options = self._mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # collision geoms are not drawn
        self._options.geomgroup[1] = 1
        self._perturbation = self._mujoco.MjvPerturb()

    def point_at(self, model: Any, data: Any, *, repainted: Set[int] = frozenset()) -> None:  # noqa: ANN401
        """Attach to a new model of the same assets.

        Args:
            model: MuJoCo's model, untyped here.
            data: its data.
            repainted: textures whose pixels in the model differ from those of the assets.
        """
        self._model, self._data = model, data
        self._stale |= self._repainted | repainted  # those of the last model are the assets' again
        self._repainted = frozenset(repainted)
        self._views = [(self._camera(name), self._mujoco.MjvScene(model, maxgeom=MAX_GEOMS)) for name in self._names]
        self.look()

    def look(self) -> None:
        """Capture the current scenes; does nothing without a model."""
        self._frames = None
        for camera, scene in self._views:
            self._mujoco.mjv_updateScene(
                self._model,
                self._data,
                self._options,
                self._perturbation,
                camera,
                self._mujoco.mjtCatBit.mjCAT_ALL,
                scene,
            )

    def frames(self) -> UInt8Array:
        """Return the last captured scenes, (N, H, W, 3), rows from the bottom; drawn at the first call."""
        if self._frames is None:
            self._frames = self._draw()
        return self._frames

    def show(self, frames: UInt8Array) -> None:
        """Set the frames that `frames` returns until the next look, (N, H, W, 3), rows from the bottom."""
        self._frames = frames.copy()

    def let_go(self) -> None:
        """Release the model."""
        self._views, self._frames = [], None
        self._model = self._data = None

    def close(self) -> None:
        """Free the graphics; safe to call twice."""
        self.let_go()
        self._free_graphics()

    def forget_assets(self) -> None:
        """Make graphics anew for the next model, which has other meshes and textures."""
        self._free_graphics()

    def _free_graphics(self) -> None:
        if self._render_context is not None:
            # Freeing acts on the current context, and two simulations number their textures alike.
            with _left_as_it_was(self._gl_context):
                self._gl_context.make_current()
                self._render_context.free()
                self._gl_context.free()
            self._render_context = self._gl_context = None

    def _make_graphics(self) -> None:
        screen = self._model.vis.global_
        width, height = max(self._image_size, screen.offwidth), max(self._image_size, screen.offheight)
        screen.offwidth, screen.offheight = width, height
        with shim.graphics(os.environ["MUJOCO_GL"]):
            self._gl_context = self._make_gl_context(max_width=width, max_height=height, device_id=-1)
            self._gl_context.make_current()
            self._render_context = self._mujoco.MjrContext(self._model, self._mujoco.mjtFontScale.mjFONTSCALE_150)
        self._stale, self._shadow_size = set(), self._model.vis.quality.shadowsize
        self._mujoco.mjr_setBuffer(self._mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._render_context)
        # Registered after the graphics library's own exit handler, so that it runs before.
        atexit.register(_close, weakref.ref(self))

    def _camera(self, name: str) -> Any:  # noqa: ANN401
        camera = self._mujoco.MjvCamera()
        camera.type = self._mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = self._model.camera(name).id
        return camera

    def _draw(self) -> UInt8Array:
        size = self._image_size
        frames = np.empty((len(self._views), size, size, 3), dtype=np.uint8)
        viewport = self._mujoco.MjrRect(0, 0, size, size)
        if self._views and self._model.vis.quality.shadowsize != self._shadow_size:
            self._free_graphics()  # a shadow map is allocated when graphics are made
        with _left_as_it_was(self._gl_context):
            if self._views and self._render_context is None:
                self._make_graphics()
            elif self._views:
                self._gl_context.make_current()
            for texture in sorted(self._stale):
                self._mujoco.mjr_uploadTexture(self._model, self._render_context, texture)
            self._stale = set()
            for (_, scene), frame in zip(self._views, frames, strict=True):
                self._mujoco.mjr_render(viewport, scene, self._render_context)
                self._mujoco.mjr_readPixels(frame, None, viewport, self._render_context)
        return frames


@contextlib.contextmanager
def _left_as_it_was(ours: Any) -> Iterator[None]:  # noqa: ANN401
    """Make a graphics context of another owner current again afterwards.

    robosuite makes its context current once, when it is created, and afterwards draws in whichever is current: LIBERO's
    own env, used alternately with ours, would draw its meshes with our textures. OSMesa does not report enough to do
    the same.

    Args:
        ours: robosuite's context that is used inside the block; None if it is created there.
    """
    if os.environ.get("MUJOCO_GL") != "egl":
        yield
        return
    from OpenGL import EGL

    context, display = EGL.eglGetCurrentContext(), EGL.eglGetCurrentDisplay()
    foreign = bool(context) and (ours is None or context.address != ours._context.address)
    surfaces = EGL.eglGetCurrentSurface(EGL.EGL_DRAW), EGL.eglGetCurrentSurface(EGL.EGL_READ)
    try:
        yield
    finally:
        if foreign:
            EGL.eglMakeCurrent(display, *surfaces, context)


def _close(reference: weakref.ref[Cameras]) -> None:
    cameras = reference()
    if cameras is not None:
        cameras.close()
