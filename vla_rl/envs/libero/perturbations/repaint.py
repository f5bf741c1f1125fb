"""Painting of a scene's surfaces, shared by the kinds that change one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from vla_rl.envs.libero.perturbations.kind import Effect, Group, Kind, Model, Numbers, uniform
from vla_rl.envs.libero.perturbations.patterns import FIELDS, FORMS, Form, blend, pattern
from vla_rl.types import TaskInfo, UInt8Array

TABLES = ("table", "living_room_table", "study_table", "coffee_table", "kitchen_table")  # bodies, in any scene
Part = Literal["table", "floor", "walls"]

_DRAWN = 1  # geom group of what is drawn


def surface_body(mujoco: Any, model: Any) -> int:  # noqa: ANN401 - MuJoCo is untyped here
    """Return the body on which the objects stand: the table, or the floor of the Object suite."""
    for name in (*TABLES, "floor"):
        number = int(mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name))
        if number >= 0:
            return number
    raise AssertionError("every scene of LIBERO has a table or a floor")


def geoms(scene: Model, part: Part) -> list[int]:
    """Return the drawn geoms of a part of the scene: `table` (the surface that objects stand on), `floor`, `walls`."""
    model, surface = scene.model, surface_body(scene.mujoco, scene.model)
    drawn = [geom for geom in range(model.ngeom) if model.geom_group[geom] == _DRAWN]
    if part == "table":
        return [geom for geom in drawn if model.geom_bodyid[geom] == surface]
    named = {"floor": "floor", "walls": "wall"}[part]
    arena = [geom for geom in drawn if model.body(model.geom_bodyid[geom]).name in ("world", "floor")]
    return [geom for geom in arena if named in model.geom(geom).name]


@dataclass(frozen=True, slots=True)
class Painted(Effect):
    """Part of the scene with a pattern on it."""

    part: Part
    form: Form
    colours: UInt8Array  # (2, 3)
    share: float  # of the pattern; the rest is the original
    seed: int  # of the pattern's own draws

    def edit_model(self, scene: Model) -> None:
        """Paint on the textures of the part, or on its colour where there is no texture."""
        model = scene.model
        chosen = geoms(scene, self.part)
        materials = {int(model.geom_matid[geom]) for geom in chosen} - {-1}
        textures = {int(texture) for material in materials for texture in model.mat_texid[material] if texture >= 0}
        for texture in sorted(textures):
            self._paint(model, texture)
        scene.repainted.update(textures)
        colour = self.colours[0] / 255
        bare = [material for material in materials if (model.mat_texid[material] < 0).all()]
        for rgba in (
            *(model.mat_rgba[material] for material in bare),
            *(model.geom_rgba[geom] for geom in chosen if model.geom_matid[geom] < 0),
        ):
            rgba[:3] = (1 - self.share) * rgba[:3] + self.share * colour

    def _paint(self, model: Any, texture: int) -> None:  # noqa: ANN401
        width, height = int(model.tex_width[texture]), int(model.tex_height[texture])
        channels, first = int(model.tex_nchannel[texture]), int(model.tex_adr[texture])
        pixels = model.tex_data[first : first + height * width * channels].reshape(height, width, channels)
        side = width if height == 6 * width else height  # a cube's six faces stand below each other
        rng = np.random.default_rng(self.seed)
        face = pattern(self.form, self.colours, height=side, width=width, rng=rng)
        painted = np.tile(face, (height // side, 1, 1))
        pixels[..., :3] = blend(pixels[..., :3], painted[..., : min(channels, 3)], self.share)


class Repaint(Kind):
    """Base of the kinds that paint one part of the scene."""

    group: ClassVar[Group] = "texture"
    source = "ours (LIBERO-plus's textures are in an archive of 6.4 GB that is not used here)"

    part: ClassVar[Part]

    def numbers(self, level: int) -> Numbers:
        """Return the share of the new pattern in every pixel."""
        return {
            "pattern_share": round(0.2 * level, 1),
            "patterns": list(FORMS),
            "fields_per_side": FIELDS,
            "colours": 2,
            "colour_channels": uniform(0, 255),
        }

    def draw(self, level: int, task: TaskInfo, rng: np.random.Generator) -> Effect:  # noqa: ARG002
        """Draw form and colours."""
        form = FORMS[rng.integers(len(FORMS))]
        colours = rng.integers(0, 256, (2, 3), dtype=np.uint8)
        return Painted(self.part, form, colours, round(0.2 * level, 1), int(rng.integers(2**31)))
