"""Small folders in the layouts of LIBERO-plus and LIBERO-Pro, made from the files of the installed LIBERO."""

import io
import json
import pickle
import shutil
import zipfile

from vla_rl.envs.libero.suites import libero_task, task_files

TASK = 8  # of libero_goal: put the bowl on the plate


def stock():
    """The task that all these are made from: its name, the text of its definition, its states."""
    task = libero_task("libero_goal", TASK)
    files = task_files(task)
    return task.name, files.bddl.read_text(encoding="utf-8"), files.standard_states


def write_states(path, states):
    """Write an array as LIBERO does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    pickle.dump(states, content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content.getvalue())


def pro_folder(root, suffix, *, edit=lambda text: text):
    """`bddl_files/libero_goal_SUFFIX` with one edited task, and its states where LIBERO-Pro has them."""
    name, text, states = stock()
    folder = root / "bddl_files" / f"libero_goal_{suffix}"
    folder.mkdir(parents=True)
    (folder / f"{name}.bddl").write_text(edit(text))
    own = root / "init_files" / folder.name / f"{name}.pruned_init"
    own.parent.mkdir(parents=True)
    shutil.copy(states, own)
    return folder


PLUS = {  # ends of names, with their categories
    "_view_30_15_100_0_0_initstate_0": "Camera Viewpoints",
    "_view_0_0_100_0_0_initstate_250": "Robot Initial States",
    "_view_0_0_100_0_0_initstate_0_noise_45": "Sensor Noise",
    "_language_3_view_0_0_100_0_0_initstate_0": "Language Instructions",
    "_moved_level2_sample1": "Objects Layout",
    "_light_3": "Light Conditions",
}
ASKED_KINDLY = "kindly set the bowl onto the plate"


def plus_folder(root, *, ends=PLUS):
    """`bddl_files/libero_goal` with variants of one task, their list, and the states of the one that has its own."""
    from vla_rl.envs.libero.init_states import read_states

    name, text, states = stock()
    folder = root / "bddl_files" / "libero_goal"
    folder.mkdir(parents=True)
    moved = text.replace("-0.09999999999999999 -0.01 -0.08 0.01", "0.0 0.04 0.02 0.06")
    for end, content in (
        ("", text),
        ("_language_3", text.replace("Put the bowl on the plate", ASKED_KINDLY)),
        ("_moved_level2_sample1", moved),
    ):
        (folder / f"{name}{end}.bddl").write_text(content)
    state = read_states(states)[7]
    state[10:12] = (0.01, 0.05)  # the bowl's place, after the time and the robot's nine joints
    own_states = root / "init_files" / "libero_newobj" / "libero_goal"
    write_states(own_states / f"{name}_moved_level2_sample1.pruned_init", state)
    entries = [
        {"id": number, "name": name + end, "category": category, "difficulty_level": 1}
        for number, (end, category) in enumerate(ends.items(), start=1)
    ]
    (root / "benchmark").mkdir()
    (root / "benchmark" / "task_classification.json").write_text(json.dumps({"libero_goal": entries}))
    return folder
