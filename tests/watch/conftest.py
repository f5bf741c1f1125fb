"""A run to watch, and a server of its page that ends with the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from watched_runs import Served, make_run


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "first")


@pytest.fixture
def serve() -> Iterator[Any]:
    """Serves runs until the test ends."""
    served: list[Served] = []

    def start(*folders: Path) -> Served:
        served.append(Served(*folders))
        return served[-1]

    yield start
    for each in served:
        each.close()
