"""`vla-rl metrics` and the page that is made of it."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from vla_rl.cli.main import app
from vla_rl.reporting.catalogue import CATALOGUE

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["metrics", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_every_metric_is_listed_with_its_meaning() -> None:
    text = shown()
    for metric in CATALOGUE.values():
        assert f"{metric.name}  [{metric.unit}]\n    {metric.meaning}\n" in text


def test_a_prefix_chooses_metrics() -> None:
    assert set(re.findall(r"^(\S+)  \[", shown("policy_lag"), re.MULTILINE)) == {
        name for name in CATALOGUE if name.startswith("policy_lag/")
    }


def test_a_prefix_of_nothing_is_the_user_s_mistake() -> None:
    result = CliRunner().invoke(app, ["metrics", "loss"])
    assert result.exit_code == 2
    assert "no metric begins with 'loss'" in result.output
    assert "policy_lag" in result.output


def test_the_page_holds_the_tables_of_the_program() -> None:
    tables = shown("--markdown")
    assert "\\|log ρ\\|" in tables  # a bar would end the cell
    page = PAGE.read_text(encoding="utf-8")
    assert page.endswith(tables), "renew it: see the command at the head of docs/metrics.md"
