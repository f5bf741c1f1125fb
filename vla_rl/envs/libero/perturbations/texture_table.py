"""The surface that the objects stand on in another pattern."""

from __future__ import annotations

from vla_rl.envs.libero.perturbations.repaint import Repaint


class TextureTable(Repaint):
    """The surface that the objects stand on gets a drawn pattern, which covers it entirely at the fifth level."""

    name = "texture-table"
    summary = "the table (in the Object suite the floor, its only surface) gets a pattern"
    part = "table"
