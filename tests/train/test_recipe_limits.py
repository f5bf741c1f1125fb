"""The ends of what a recipe may hold are not only accepted: a run with each of them goes on to its end."""

import io
import json

import pytest
import torch
from rich.console import Console

from vla_rl.errors import RunFailureError, UserError
from vla_rl.recipe import build_recipe
from vla_rl.recipe.model import Recipe
from vla_rl.recipe.shape import field_sections, kind_name, kinds
from vla_rl.train import train

SMALL = """
name: t
env: {name: toy, horizon: 8}
policy: {name: mlp, hidden_dim: 8, num_bins: 4}
surrogate: {name: gipo}
replay: {capacity: 64, min_decisions: 8, segment_length: 2}
learner: {micro_batch: 2}
budget: {optimizer_steps: 2}
runtime: {mode: serial, device: cpu}
logging: {tensorboard: false}
"""
AS_LONG_AS_ASKED = {  # the run does more of the same, for minutes
    "env.step_seconds", "budget.optimizer_steps", "evaluation.episodes_per_task", "learner.micro_batch",
    "learner.accumulation", "policy.hidden_dim",
}  # fmt: skip
KINDS = {"toy", "mlp", *kinds(("surrogate",)), *kinds(("targets",)), None}
CHOSEN = {"toy", "mlp", "gipo", "gae", None}  # in SMALL, or where it says nothing


def ends(entry):
    """The smallest and the largest number of a field, or of what is in it."""
    for member in entry.get("anyOf", [entry.get("items", entry)]):
        if member.get("type") in ("integer", "number") and "enum" not in member:
            yield member.get("minimum", 1e-9)  # a bound that is left out is an open one: above 0, below 1
            yield member.get("maximum", 1 - 1e-9)


def cases():
    """(overrides of a kind, path, value) at both ends of every number that the toy and its policy have."""
    for name in Recipe.model_fields:
        for section in field_sections(Recipe, name):
            kind = kind_name(section)
            if kind not in KINDS:
                continue
            chosen = [] if kind in CHOSEN else [f"{name}.name={kind}"]
            for key, entry in section.model_json_schema()["properties"].items():
                for value in ends(entry):
                    yield chosen, f"{name}.{key}", [value] if entry.get("type") == "array" else value
    yield [], "seed", 2**63 - 1
    yield [], "name", "x" * 128


@pytest.fixture(autouse=True)
def threads():
    """Leaves torch's number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [case for case in cases() if case[1] not in AS_LONG_AS_ASKED],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_a_run_at_the_end_of_a_field_goes_well_or_ends_with_a_reason(kind, path, value, tmp_path):
    """The reasons are a machine that is too small, another field that does not fit, and a run that diverges."""
    try:
        recipe = build_recipe(SMALL, [*kind, f"{path}={json.dumps(value)}"])
        outcome = train(recipe, run_dir=tmp_path / "run", resume=False, console=Console(file=io.StringIO()))
    except (UserError, RunFailureError, MemoryError) as reason:
        assert str(reason)
    else:
        assert outcome.clocks.optimizer_steps == 2 or path.startswith("budget.")


def test_the_cases_reach_every_section_that_has_numbers():
    assert {path.split(".")[0] for _, path, _ in cases()} >= {
        "env", "policy", "surrogate", "targets", "loss", "optimizer", "replay", "learner", "rollout", "runtime",
        "budget", "checkpoint", "evaluation", "logging", "seed", "name",
    }  # fmt: skip
    assert len(list(cases())) > 80
