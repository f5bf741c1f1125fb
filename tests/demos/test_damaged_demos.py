"""Whatever happens to a file on its way: the data are read, or one error tells what is wrong."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import toy_demos as toy

from vla_rl.demos import DemosError, open_demos

WRITERS = {
    "raw": lambda root, them: toy.write_hdf5(root, them, raw=True),
    "rlds": toy.write_rlds,
    "v2.1 with videos": lambda root, them: toy.write_lerobot_v2(root, them, kind="video"),
    "v3.0": toy.write_lerobot_v3,
}
DAMAGES = 30


def damaged(content: bytes, chance: random.Random, *, is_text: bool) -> bytes:
    """Cut off, with bits turned, with zeros, with bytes too many, or with another word of JSON."""
    place = chance.randrange(len(content))
    kind = chance.choice(["cut", "bits", "zeros", "more", *["word"] * (3 * is_text)])
    if kind == "cut":
        return content[:place]
    if kind == "zeros":
        return content[:place] + bytes(len(content[place : place + 64])) + content[place + 64 :]
    if kind == "more":
        return content[:place] + b"xyz" + content[place:]
    if kind == "word":
        text = content.decode()
        word = chance.choice(list(re.finditer(r'"[^"]*"|\d+', text)))
        other = chance.choice(["null", "-1", '"a"', "[]", "{}", "0", "99999999"])
        return (text[: word.start()] + other + text[word.end() :]).encode()
    turned = bytearray(content)
    for _ in range(chance.choice([1, 3, 20])):
        turned[chance.randrange(len(turned))] ^= 1 << chance.randrange(8)
    return bytes(turned)


@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_file_is_read_or_told(name: str, tmp_path: Path) -> None:
    root = WRITERS[name](tmp_path / "data", toy.toys()[:3])
    files = sorted(it for it in root.rglob("*") if it.is_file())
    told = 0
    for seed in range(DAMAGES):
        chance = random.Random(seed)
        file = chance.choice(files)
        content = file.read_bytes()
        file.write_bytes(damaged(content, chance, is_text=file.suffix.startswith(".json")))
        try:
            assert all(episode.frames for episode in open_demos(root))
        except DemosError:
            told += 1
        file.write_bytes(content)
    assert told > DAMAGES // 6
    assert len(open_demos(root)) == 3
