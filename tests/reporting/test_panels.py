"""The panels of the report and of the live page."""

from __future__ import annotations

import pytest

from vla_rl.reporting.catalogue import CATALOGUE
from vla_rl.reporting.panels import FIGURES, PanelSpec

PANELS = [panel for figure in FIGURES for panel in figure.panels]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_the_metrics_of_a_panel_share_the_unit_that_it_shows(panel: PanelSpec) -> None:
    assert {CATALOGUE[name].unit for name in panel.metrics} == {panel.unit or "1"}


def test_metrics_of_one_panel_have_different_names_in_its_legend() -> None:
    assert all(len(set(panel.labels)) == len(panel.metrics) for panel in PANELS)
    assert PanelSpec("", ("a/x", "a/y")).labels == ("x", "y")
    assert PanelSpec("", ("a/x", "b/x")).labels == ("a/x", "b/x")
