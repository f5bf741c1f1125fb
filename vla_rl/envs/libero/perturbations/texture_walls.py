"""The walls in another pattern."""

from __future__ import annotations

from vla_rl.envs.libero.perturbations.repaint import Repaint


class TextureWalls(Repaint):
    """The walls get a drawn pattern, which covers it entirely at the fifth level."""

    name = "texture-walls"
    summary = "the walls get a pattern"
    part = "walls"
