"""What all verbs of `vla-rl study` have in common."""

import pytest
import typer
from typer.testing import CliRunner

from vla_rl.cli.main import app
from vla_rl.cli.study import app as study
from vla_rl.cli.study import options

FOLDERS = {  # what a verb needs to be called at all, with {} for a folder that exists
    "figures": ["{}", "--out", "{}/new"],
    "metaworld": ["--out", "{}/new", "--dry-run"],
    "merge": ["{}", "--out", "{}/new"],
    "libero": ["--out", "{}/new", "--dry-run"],
    "groups": ["--out", "{}/new", "--dry-run"],
    "gridworld": ["--out", "{}/new"],
}


def test_every_verb_is_looked_at_here():
    assert set(FOLDERS) == set(typer.main.get_command(study).commands)


@pytest.mark.parametrize("verb", FOLDERS)
def test_without_matplotlib_a_study_says_what_to_install_before_it_begins(verb, tmp_path, monkeypatch):
    monkeypatch.setattr(options, "find_spec", lambda _: None)
    called = CliRunner().invoke(app, ["study", verb, *(word.format(tmp_path) for word in FOLDERS[verb])])
    assert called.exit_code == 2
    assert "pip install 'vla-rl[plots]'" in called.output
    assert list(tmp_path.iterdir()) == []
