import dataclasses
import os

import pytest

from vla_rl.errors import UserError
from vla_rl.evaluation.conditions import (
    CONDITIONS_FILE,
    Conditions,
    differences,
    digest_of_files,
    evaluation_folder,
    read_conditions,
)

USUAL = Conditions(
    checkpoint="runs/x/checkpoints/optimizer_step_3",
    fingerprint="abc",
    trained_on="libero_goal (tasks: all), sampled initial states",
    protocol="oft",
    horizon=None,
    temperature=None,
    seeds=(0,),
    init_states="standard",
    assets="full",
    versions="mujoco 3.3.0",
)
OTHER = dataclasses.replace(USUAL, protocol="long", seeds=(1, 2))


def claimed(conditions, *, out, default):
    """The folder, claimed and let go of."""
    with evaluation_folder(conditions, set(), out=out, default=default) as folder:
        return folder


def test_conditions_are_read_as_they_were_written(tmp_path):
    folder = claimed(OTHER, out=tmp_path / "eval", default=tmp_path)
    assert read_conditions(folder) == OTHER
    assert read_conditions(tmp_path) is None


def test_an_asked_folder_is_gone_on_with_but_not_shared(tmp_path):
    out = tmp_path / "eval"
    for _ in range(2):
        assert claimed(USUAL, out=out, default=tmp_path) == out
    with pytest.raises(UserError, match="protocol: oft and long; seeds: 0 and 1,2"):
        claimed(OTHER, out=out, default=tmp_path)
    assert read_conditions(out) == USUAL


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_folder_whose_name_is_no_text_is_refused_before_anything_is_written(tmp_path, is_asked):
    """Weights are read from there while it plays."""
    folder = tmp_path / os.fsdecode(b"n\xff")
    with pytest.raises(UserError, match=r"^--out: .*found \S+/n\\udcff, from which .* choose another name"):
        claimed(USUAL, out=folder if is_asked else None, default=folder)
    assert list(tmp_path.iterdir()) == []


def test_a_default_folder_is_numbered_until_it_is_one_s_own(tmp_path):
    changed = dataclasses.replace(USUAL, fingerprint="def")
    default = tmp_path / "eval" / "step_3"
    assert claimed(USUAL, out=None, default=default).name == "step_3"
    assert claimed(changed, out=None, default=default).name == "step_3_2"
    assert claimed(USUAL, out=None, default=default).name == "step_3"
    assert claimed(changed, out=None, default=default).name == "step_3_2"


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ("episodes.jsonl", r"holds episodes\.jsonl of something else"),
        ("manifest.json", r"holds manifest\.json of something else"),
        ("recipe.yaml", r"is the folder of a run"),
    ],
)
def test_a_folder_with_files_of_something_else_is_left_alone(tmp_path, file, complaint):
    (tmp_path / file).write_text("precious")
    with pytest.raises(UserError, match=rf"--out: {tmp_path} {complaint}"):
        claimed(USUAL, out=tmp_path, default=tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {file: "precious"}


def test_a_folder_in_use_is_refused_before_a_word_is_written(tmp_path):
    with evaluation_folder(USUAL, set(), out=tmp_path, default=tmp_path):
        before = (tmp_path / CONDITIONS_FILE).stat()
        with pytest.raises(UserError, match="another process is writing to"):
            claimed(USUAL, out=tmp_path, default=tmp_path)
        assert (tmp_path / CONDITIONS_FILE).stat() == before
    assert claimed(USUAL, out=tmp_path, default=tmp_path) == tmp_path


def test_a_file_is_no_folder_and_told_so(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=f"--out: {out} cannot be made"):
            claimed(USUAL, out=out, default=tmp_path)


def test_a_digest_tells_files_apart_by_name_and_content_and_not_by_where_they_lie(tmp_path):
    def folder(name, files):
        for file, content in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(content)
        return digest_of_files(tmp_path / name, ["scenes", "objects"])

    files = {"scenes/floor.xml": "<mujoco/>", "objects/bowl/bowl.obj": "v 1 2 3"}
    usual = folder("here", files)
    assert len(usual) == 12
    assert folder("there", files) == usual
    assert folder("noted", files | {".cache/download.json": "today"}) == usual
    assert folder("edited", files | {"scenes/floor.xml": "<mujoco />"}) != usual
    assert folder("renamed", {"scenes/floor.xml": "<mujoco/>", "objects/bowl/bawl.obj": "v 1 2 3"}) != usual


def test_an_evaluation_does_not_go_on_with_other_assets():
    other = dataclasses.replace(USUAL, assets="full, files 222222222222")
    assert differences(dataclasses.replace(USUAL, assets="full, files 111111111111"), other, of_policy=True) == [
        "assets: full, files 111111111111 and full, files 222222222222"
    ]


def test_a_checkpoint_may_move_and_another_one_may_not_take_its_place():
    moved = dataclasses.replace(USUAL, checkpoint="elsewhere")
    replaced = dataclasses.replace(USUAL, fingerprint="def")
    assert differences(USUAL, moved, of_policy=True) == []
    assert differences(USUAL, replaced, of_policy=True) == ["fingerprint: abc and def"]
    # Two policies that are compared are different ones, of course.
    assert differences(USUAL, replaced, of_policy=False) == []
    assert differences(USUAL, dataclasses.replace(USUAL, temperature=1.6), of_policy=False) == [
        "temperature: greedy and 1.6"
    ]


@pytest.mark.parametrize("text", ["", "[]", '{"seeds": [0]}', '{"seeds": [0], "more": 1}'])
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / CONDITIONS_FILE).write_text(text)
    with pytest.raises(ValueError, match=CONDITIONS_FILE):
        read_conditions(tmp_path)
