"""Model cards: what they say is in the files, and what the files do not say they do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from small_run import DEVIATION, evaluate, fingerprint_of
from typer.testing import CliRunner

from vla_rl.cli.main import app
from vla_rl.errors import UserError
from vla_rl.evaluation.history import exported_from, recorded_history
from vla_rl.sharing.card import make_card


def front(text: str) -> dict:
    """The YAML that the hub reads."""
    return yaml.safe_load(text.split("---\n")[1])


def row(text: str, name: str) -> str:
    (found,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return found.split(" | ", 1)[1].removesuffix(" |")


@pytest.mark.parametrize("target", ["run", "run/checkpoints/optimizer_step_7", "export"])
def test_a_card_says_how_the_policy_was_made(shared: Path, target: str) -> None:
    text = make_card(str(shared / target), repo="ann/arm").text
    assert "\n# arm\n" in text
    assert row(text, "trained on") == "libero_goal (tasks: 3,5), sampled initial states"
    assert row(text, "surrogate") == "`gipo`; sigma 0.25, negative_sigma_scale 1.0"
    assert row(text, "recipe") == "`small`, seed 5"
    assert row(text, "env steps used") == "12,345"
    assert row(text, "episodes used") == "67"
    assert row(text, "optimizer steps") == "7"
    assert row(text, "sampling in training") == "temperature 1.0"
    assert row(text, "began from") == "random weights (`tiny`)"
    assert row(text, "software").startswith("vla-rl 0.1.0, python 3.")
    assert f"* {DEVIATION}" in text
    assert '"physics": "fast"' in text
    assert "vla-rl eval ann/arm\n" in text
    assert (
        "--task_suite_name libero_goal --use_l1_regression False --use_diffusion False \\\n"
        "  --use_film False --num_images_in_input 1 --use_proprio True\n"
    ) in text


@pytest.mark.parametrize("target", ["run", "export"])
def test_a_card_tells_nothing_about_the_machine(shared: Path, target: str) -> None:
    text = make_card(str(shared / target)).text
    assert "tracker.of.the.lab" not in text
    assert str(shared) not in text
    assert "tracker.of.the.lab" not in (shared / "export" / "vla_rl.json").read_text(encoding="utf-8")


def test_a_card_without_an_evaluation_has_no_score(shared: Path) -> None:
    text = make_card("run").text
    assert "No evaluation of this policy was found or given, so there are no scores here." in text
    assert "model-index" not in front(text)
    assert "success" not in text.split("## Evaluation")[1].split("## How")[0]


def test_a_card_quotes_the_evaluations_of_its_policy_with_intervals_and_protocol(shared: Path) -> None:
    evaluate(shared / "run/eval/one", fingerprint=fingerprint_of(shared / "run"), successes=9, temperature=0.5)
    card = make_card("run", repo="ann/arm")
    (scores,) = card.scores
    assert scores.folder == Path("run/eval/one")
    # Nine of twenty; Wilson with z = 1.96: centre (0.45 + 0.09604) / 1.19208, half width 0.19986.
    assert "| libero_goal | 2 | 20 | 45.0 % | 25.8 % to 65.8 % | " in card.text
    assert row(card.text, "horizon, control steps") == "libero_goal 300"
    assert row(card.text, "actions") == "sampled at temperature 0.5"
    assert row(card.text, "assets") == "proxy, files 0123456789ab"
    assert "these scores are not the benchmark's:\n\n* built-in proxy assets \\| instead of LIBERO's" in card.text
    assert "| libero_goal | 3 | open &lt;the> drawer | 9/10 | 59.6 % to 98.2 % |" in card.text
    (entry,) = front(card.text)["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "arm"
    assert result["dataset"]["type"] == "libero_goal"
    assert result["metrics"] == [{"type": "success_rate", "name": "success rate", "value": 0.45}]


def test_an_evaluation_that_the_training_made_of_this_checkpoint_is_quoted(shared: Path) -> None:
    meanwhile = shared / "run/eval/while_training"
    evaluate(meanwhile / "optimizer_step_5", fingerprint="0" * 16, successes=5)
    evaluate(meanwhile / "optimizer_step_7", fingerprint=fingerprint_of(shared / "run"), successes=9)
    (scores,) = make_card("run").scores
    assert scores.folder == Path("run/eval/while_training/optimizer_step_7")


def test_perturbations_and_controls_are_quoted(shared: Path) -> None:
    folder = evaluate(shared / "run/eval/one", fingerprint=fingerprint_of(shared / "run"), successes=9)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    results["controls"] = [{"name": "blind", "success_rate": 0.05, "meaning": "It looks at the pictures."}]
    results["perturbations"] = [
        {"suite": "libero_goal", "kind": "fog", "level": 3, "episodes": 20, "success_rate": 0.1,
         "wilson": {"low": 0.028, "high": 0.301}},
    ]  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    text = make_card("run").text
    assert "| blind | 5.0 % | It looks at the pictures. |" in text
    assert "| libero_goal | fog, level 3 | 20 | 10.0 % | 2.8 % to 30.1 % |" in text


def test_an_evaluation_of_another_policy_is_never_quoted(shared: Path) -> None:
    evaluate(shared / "run/eval/another", fingerprint="0" * 16, successes=20)
    assert make_card("run").scores == ()
    with pytest.raises(UserError, match=r"--eval: run/eval/another is an evaluation of runs/small, whose weights"):
        make_card("run", evaluations=[Path("run/eval/another")])


def test_an_export_quotes_what_its_checkpoint_scored_and_says_so(shared: Path) -> None:
    evaluate(shared / "run/eval/one", fingerprint=fingerprint_of(shared / "run"), successes=9)
    assert make_card("export").scores == ()
    card = make_card("export", evaluations=[Path("run/eval/one")])
    assert "Played by the checkpoint that these weights were exported from." in card.text
    own = evaluate(shared / "own", fingerprint=fingerprint_of(shared / "export"), successes=9)
    assert "Played by the checkpoint" not in make_card("export", evaluations=[own / "results.json"]).text


def test_an_evaluation_given_twice_is_quoted_once(shared: Path) -> None:
    folder = evaluate(shared / "run/eval/one", fingerprint=fingerprint_of(shared / "run"), successes=9)
    assert len(make_card("run", evaluations=[folder, Path("run/eval/one")]).scores) == 1


def test_what_is_no_evaluation_or_a_broken_one_is_named(shared: Path) -> None:
    with pytest.raises(UserError, match=r"--eval: run holds no results\.json"):
        make_card("run", evaluations=[Path("run")])
    (shared / "run/eval/bad").mkdir(parents=True)
    (shared / "run/eval/bad/results.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"bad/results\.json: expected the results of an evaluation, found no confid"):
        make_card("run")


def test_a_licence_is_named_only_if_it_was_chosen(shared: Path) -> None:
    assert "license" not in front(make_card("run").text)
    assert "The uploader has not chosen a licence." in make_card("run").text
    chosen = make_card("run", license_name="apache-2.0").text
    assert front(chosen)["license"] == "apache-2.0"
    assert "`apache-2.0`, chosen by the uploader." in chosen


def test_what_is_not_recorded_is_called_so(shared: Path) -> None:
    (shared / "run" / "manifest.json").unlink()
    text = make_card("run").text
    assert "No file of this policy tells how it was trained." in text
    assert row(text, "made by") == "not recorded"
    record = shared / "export" / "vla_rl.json"
    kept = {key: value for key, value in json.loads(record.read_text()).items() if key == "profile"}
    record.write_text(json.dumps(kept), encoding="utf-8")
    text = make_card("export").text
    assert row(text, "trained on") == "not recorded"
    assert "vla-rl eval USER/REPO --suite SUITE\n" in text
    assert "--task_suite_name SUITE " in text


def test_a_broken_history_is_named(shared: Path) -> None:
    record = shared / "export" / "vla_rl.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "history": {"stage": 3}}), encoding="utf-8")
    with pytest.raises(UserError, match=r"vla_rl\.json: history is \{\"stage\": 3\}"):
        make_card("export")


def test_an_export_of_an_export_keeps_the_history(shared: Path) -> None:
    from vla_rl.export.policy_export import export

    export(shared / "export", out=shared / "again", verify=0)
    assert recorded_history(shared / "again") == recorded_history(shared / "export") is not None
    assert exported_from(shared / "again") == fingerprint_of(shared / "export")


def test_the_verb_prints_a_card_or_writes_it(shared: Path) -> None:
    shown = CliRunner().invoke(app, ["card", "run", "--license", "mit"])
    assert shown.exit_code == 0, shown.output
    assert shown.output == make_card("run", license_name="mit").text
    written = CliRunner().invoke(app, ["card", "run", "--license", "mit", "--out", "card.md", "--repo", "ann/arm"])
    assert "written: card.md, with 0 evaluations" in written.output
    assert (shared / "card.md").read_text(encoding="utf-8") == make_card("run", license_name="mit", repo="ann/arm").text
