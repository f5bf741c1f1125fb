"""Contact sheet: first and last pictures of a data set on one page, as a policy sees them."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from PIL import Image, ImageDraw

from vla_rl.demos.episode import CAMERAS, Episode
from vla_rl.demos.opening import Demos
from vla_rl.files import written_aside

THUMBNAIL = 160  # pixels
MARGIN, LABEL = 8, 18
MAX_ROWS = 20
PAPER, INK = (255, 255, 255), (20, 20, 20)
SHEETS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}  # format of each suffix


def sheet_format(file: Path) -> str:
    """Return the format that the name of a sheet's file asks for.

    Raises:
        ValueError: no sheet can be written in the format of that suffix.
    """
    suffix = file.suffix.lower()
    if suffix not in SHEETS:
        raise ValueError(
            f"expected a name that ends in {', '.join(SHEETS)}, found {file}. "
            f"Write {quote(str(file.with_suffix('.png')))}"
        )
    return SHEETS[suffix]


def write_contact_sheet(demos: Demos, file: Path) -> int:
    """Draw the first episode of each of the first 20 tasks: the first and the last picture of each camera.

    Args:
        demos: the data set.
        file: to write, PNG or JPEG by its suffix.

    Returns:
        The number of episodes on the sheet.

    Raises:
        ValueError: as `sheet_format`.
        DemosError: a picture cannot be read.
    """
    shown: dict[str, int] = {}
    for index, stored in enumerate(demos.reader):
        shown.setdefault(stored.task, index)
        if len(shown) == MAX_ROWS:
            break
    line = LABEL + THUMBNAIL + MARGIN
    columns = 2 * len(CAMERAS)
    sheet = Image.new("RGB", (MARGIN + columns * (THUMBNAIL + MARGIN), MARGIN + line * len(shown)), PAPER)
    for row, index in enumerate(shown.values()):
        _draw(sheet, demos[index], MARGIN + row * line)
    with written_aside(file) as aside:
        sheet.save(aside, sheet_format(file), quality=95)  # which PNG ignores
    return len(shown)


def _draw(sheet: Image.Image, episode: Episode, top: int) -> None:
    text = f"{episode.instruction}  ({episode.number}, {len(episode)} rows)  " + ", ".join(
        f"{camera} first, last" for camera in CAMERAS
    )
    ImageDraw.Draw(sheet).text((MARGIN, top), text, fill=INK)
    for column, (camera, row) in enumerate((camera, row) for camera in CAMERAS for row in (0, -1)):
        picture = Image.fromarray(episode.frame(camera, row)).resize((THUMBNAIL, THUMBNAIL))
        sheet.paste(picture, (MARGIN + column * (THUMBNAIL + MARGIN), top + LABEL))
