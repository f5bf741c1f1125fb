"""The floor in another pattern."""

from __future__ import annotations

from vla_rl.envs.libero.perturbations.repaint import Repaint


class TextureFloor(Repaint):
    """The floor gets a drawn pattern, which covers it entirely at the fifth level."""

    name = "texture-floor"
    summary = "the floor gets a pattern"
    part = "floor"
