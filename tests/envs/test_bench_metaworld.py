"""The record of the Meta-World benchmark: what was measured, of what, on what."""

import importlib.machinery
import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("metaworld", reason="the extra metaworld is not installed")

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_metaworld"


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """A function that calls the script with one measured rate and further options; returns its record."""
    loader = importlib.machinery.SourceFileLoader("bench_metaworld", str(SCRIPT))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    script = importlib.util.module_from_spec(spec)
    loader.exec_module(script)
    file = tmp_path / "found.json"

    def call(rate, *options, name="ours"):
        def measure(*_, keep, **__):
            keep({name: [{"learn": rate}]})
            return {name: [{"learn": rate}]}

        monkeypatch.setattr(script, "measure", measure)
        monkeypatch.setattr("sys.argv", ["bench_metaworld", "--out", str(file), *options])
        script.main()
        return json.loads(file.read_text(encoding="utf-8"))

    return call


def test_a_record_says_what_was_measured_on_what(bench):
    record = bench(1.0)
    assert set(record["source"]) == {"commit", "dirty"}
    assert {"torch", "mujoco", "metaworld", "numpy"} <= set(record["versions"])
    assert record["hardware"]["cpu"]


def test_rounds_are_added_to_those_of_the_same_settings_and_to_no_others(bench, capsys):
    bench(1.0)
    bench(2.0, name="theirs")
    assert bench(3.0)["rounds"] == {"ours": [{"learn": 1.0}, {"learn": 3.0}], "theirs": [{"learn": 2.0}]}
    with pytest.raises(SystemExit):
        bench(4.0, "--reuse", "5")
    assert "found.json was measured with other reuse; choose another file" in capsys.readouterr().err
    assert len(bench(5.0)["rounds"]["ours"]) == 3
