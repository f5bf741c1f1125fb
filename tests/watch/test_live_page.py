"""The live page in a real browser: what a reader sees while a run goes on, and afterwards."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from headless import Browser, find_browser
from watched_runs import make_run, write_points

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason="needs Chromium or Chrome on this machine (Debian: apt-get install chromium)"
)

READ = "document.getElementById('status').textContent.startsWith('Read at')"
FIRST = "document.querySelector('figure:not([hidden])')"  # success rate


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile")) as started:
        yield started


def text(browser: Browser) -> str:
    return browser.value("document.body.innerText")


def shown_value(browser: Browser) -> str:
    return browser.value(f"{FIRST}.querySelector('.legend b').textContent")


def append_point(run_dir: Path, step: int) -> None:
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    changed = last | {"optimizer_steps": step, "env_steps": 100 * step, "rollout/success_rate": 0.77}
    with (run_dir / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(changed) + "\n")


def test_a_run_is_shown_with_all_that_it_wrote(serve: Any, run_dir: Path, browser: Browser) -> None:
    served = serve(run_dir)
    browser.open(served.address)
    browser.wait_for(READ)
    seen = text(browser)
    for expected in (
        "10 of 20 optimizer steps, 10 episodes, 1,000 env steps in 0:00:20", "success rate", "return (reward)",
        "lag (versions)",
        "optimizer step 7: success collapse – Success fell: <i>lower</i> the rate.", "task0.mp4",
        "last line of the learner",
        "Deviation from the protocol: proxy <b>assets</b>",
    ):  # fmt: skip
        assert expected in seen
    assert browser.value("document.querySelectorAll('figure:not([hidden]) svg .line').length") >= 3
    label = browser.value(f"{FIRST}.querySelector('svg.plot').getAttribute('aria-label')")
    assert label == "success rate over env steps, from 0 % to 10 %; newest: 10 %"
    assert browser.value("document.querySelectorAll('main i, main li b b, script:not([src])').length") == 0
    assert [request for request in browser.requests() if not request.startswith((served.address, "data:"))] == []
    assert [fault for fault in browser.faults() if "video" not in fault] == []


def test_the_page_follows_a_run_that_goes_on_and_one_that_is_resumed(
    serve: Any, run_dir: Path, browser: Browser
) -> None:
    browser.open(serve(run_dir).address)
    browser.wait_for(READ)
    assert shown_value(browser) == "10 %"
    append_point(run_dir, 11)
    refresh(browser)
    assert shown_value(browser) == "77 %"
    assert browser.value(f"{FIRST}.querySelector('path.line').getAttribute('d').match(/[ML]/g).length") == 11
    assert "11 of 20 optimizer steps" in text(browser)
    write_points(run_dir, range(6, 8))
    refresh(browser)
    assert "7 of 20 optimizer steps" in text(browser)
    assert shown_value(browser) == "7 %"


def refresh(browser: Browser) -> None:
    """Have the page ask now, by its own button."""
    browser.value("document.getElementById('status').textContent = ''")
    browser.value("(document.getElementById('pause').click(), document.getElementById('pause').click())")
    browser.wait_for(READ)


def test_several_runs_are_compared_and_can_be_hidden(
    serve: Any, run_dir: Path, tmp_path: Path, browser: Browser
) -> None:
    others = [make_run(tmp_path / name, points=points) for name, points in (("second", 5), ("third", 3))]
    browser.open(serve(run_dir, *others).address)
    browser.wait_for(READ)
    lines = f"{FIRST}.querySelectorAll('svg.plot path.line').length"
    legend = f"[...{FIRST}.querySelectorAll('.legend li')].map((each) => each.textContent)"
    assert browser.value(lines) == 3
    assert browser.value(legend) == ["first10 %", "second5 %", "third3 %"]
    strokes = f"[...{FIRST}.querySelectorAll('svg.plot path.line')].map((each) => getComputedStyle(each).color)"
    assert len(set(browser.value(strokes))) == 3
    assert "second, optimizer step 7: success collapse" in text(browser)
    browser.value("document.querySelectorAll('.card input')[1].click()")
    assert browser.value(legend) == ["first10 %", "third3 %"]
    assert "second, optimizer step 7" not in text(browser)


def test_values_are_read_with_the_mouse_and_with_the_keyboard(serve: Any, run_dir: Path, browser: Browser) -> None:
    browser.open(serve(run_dir).address)
    browser.wait_for(READ)
    box = f"{FIRST}.querySelector('svg.plot').getBoundingClientRect()"
    x, y, width = (browser.value(f"{box}.{name}") for name in ("x", "y", "width"))
    browser.move_to(x + 46 + (width - 56) * 0.52, y + 50)  # the plot lies between margins of 46 and 10
    assert shown_value(browser) == "5 %"
    assert "at 520 env steps" in browser.value(f"{FIRST}.querySelector('svg.plot').textContent")
    browser.move_to(1, 1)
    assert shown_value(browser) == "10 %"
    browser.value(f"{FIRST}.focus()")
    steps = {"ArrowLeft": "9 %", "Home": "1 %", "ArrowRight": "2 %", "End": "10 %"}
    for key, value in (*steps.items(), ("Home", "1 %"), ("Escape", "10 %")):
        browser.press(key)
        assert shown_value(browser) == value
    all_figures = "[...document.querySelectorAll('#figures figure')]"
    assert browser.value(f"{all_figures}.every((each) => each.tabIndex === 0 && each.getAttribute('aria-label'))")


def test_smoothing_and_the_clock_change_the_curves(serve: Any, run_dir: Path, browser: Browser) -> None:
    browser.open(serve(run_dir).address)
    browser.wait_for(READ)
    choose = "(each, value, kind) => { each.value = value; each.dispatchEvent(new Event(kind)); }"
    browser.value(f"({choose})(document.getElementById('clock'), 'seconds', 'change')")
    assert "wall-clock time (s)" in browser.value(f"{FIRST}.querySelector('svg.plot').textContent")
    browser.value(f"({choose})(document.getElementById('smoothing'), '0.5', 'input')")
    # Weights 1, 2, ..., 512 of 1/1023 each on 1 % to 10 %: (9 * 1024 + 1) / 1023 = 9.01 %
    assert shown_value(browser) == "9 %"
    assert browser.value(f"{FIRST}.querySelectorAll('svg.plot path.raw').length") == 1
    browser.value(f"{FIRST}.focus()")
    browser.press("Home")
    assert shown_value(browser) == "1 %"  # the first point has no other that it could be smoothed with


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_lines_and_texts_stand_out_from_the_paper(serve: Any, run_dir: Path, browser: Browser, dark: bool) -> None:
    """WCAG 2.2: contrast of at least 3 for graphics (1.4.11) and 4.5 for texts (1.4.3)."""
    browser.open(serve(run_dir).address, dark=dark)
    browser.wait_for(READ)
    names = ["paper", "ink", "muted", "accent", "good", "bad", *(f"c{number}" for number in range(6))]
    style = "getComputedStyle(document.documentElement)"
    found = browser.value(f"{json.dumps(names)}.map((name) => {style}.getPropertyValue('--' + name).trim())")
    colors = dict(zip(names, map(luminance, found), strict=True))
    assert (colors["paper"] < 0.05) is dark
    for name, color in colors.items():
        high, low = sorted((color, colors["paper"]), reverse=True)
        least = 1 if name == "paper" else 3 if name[1:].isdigit() else 4.5
        assert (high + 0.05) / (low + 0.05) >= least, name


def luminance(color: str) -> float:
    """Relative luminance of #rgb or #rrggbb, in [0, 1] (WCAG 2.2)."""
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    channels = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_window(serve: Any, tmp_path: Path, browser: Browser, width: int) -> None:
    name = "a_long_name_without_any_place_to_break_it_" * 2
    runs = [make_run(tmp_path / f"{name}{number}") for number in range(3)]
    browser.open(serve(*runs).address, width=width)
    browser.wait_for(READ)
    assert browser.value("document.documentElement.scrollWidth") <= width


def test_an_empty_run_says_so_and_shows_its_curves_once_it_has_some(
    serve: Any, tmp_path: Path, browser: Browser
) -> None:
    (tmp_path / "recipe.yaml").write_text("name: run\n")
    browser.open(serve(tmp_path).address)
    browser.wait_for(READ)
    assert "There are no log points yet" in text(browser)
    write_points(tmp_path, range(1, 3))
    browser.open(browser.value("location.href"))
    browser.wait_for(READ)
    assert "There are no log points yet" not in text(browser)
    assert shown_value(browser) == "2 %"


def test_ctrl_c_ends_the_program_with_its_code_and_the_page_tells_and_stays(run_dir: Path, browser: Browser) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "vla_rl", "watch", str(run_dir), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            assert program.stdout is not None
            address = program.stdout.readline().split()[-1]
            browser.open(address)
            browser.wait_for(READ)
            program.send_signal(signal.SIGINT)
            _, told = program.communicate(timeout=30)
            assert (program.returncode, told) == (130, "interrupted\n")
        finally:
            program.kill()
    browser.value("(document.getElementById('pause').click(), document.getElementById('pause').click())")
    browser.wait_for("document.getElementById('status').textContent.startsWith('No answer from vla-rl watch')")
    assert shown_value(browser) == "10 %"


def test_without_scripts_the_page_says_what_to_do(serve: Any, run_dir: Path, browser: Browser) -> None:
    browser.open(serve(run_dir).address, script=False)
    assert "vla-rl report" in text(browser)
