"""Options, the loop over the phases, the files that are written. Standard library alone."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpu_check_parts import phases, runner, table, wheels
from gpu_check_parts.record import Setting, write_json
from gpu_check_parts.runner import Outcome, Phase

ROOT = Path(__file__).resolve().parents[2]
JSON, TABLE, LOG = "gpu_check.json", "gpu_check.txt", "gpu_check.log"
SIZES = ("7b", "mid", "tiny")
PASSED, NOT_PASSED, REFUSED, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str], *, description: str) -> int:
    """Run what was asked for; returns the exit code."""
    options = parse(arguments, description)
    try:
        if options.prepare is not None:
            return prepare(options.prepare, wheels.Target(options.python or wheels.Target.this_one().python))
        return Check(options, arguments).run()
    except RefusalError as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return REFUSED


class RefusalError(Exception):
    """The user can mend it; nothing was measured."""


def parse(arguments: Sequence[str], description: str) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", choices=SIZES, default="7b", help="7b: the real network, on a GPU; mid and tiny run on a CPU too"
    )
    parser.add_argument(
        "--only", type=phase_names, default=phases.NAMES, metavar="PHASE,...", help="these phases alone"
    )
    parser.add_argument(
        "--out", type=Path, help="folder for what is written (default: runs/gpu_check-DATE-TIME in the repository)"
    )
    parser.add_argument("--minutes", type=positive, default=8.0, help="for everything together (default: 8)")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="use the packages that --prepare put there")
    parser.add_argument("--prepare", type=Path, metavar="DIR", help="download the small packages to DIR, and end")
    parser.add_argument(
        "--python", type=python_version, metavar="3.12", help="with --prepare: of the machine they are for"
    )
    options = parser.parse_args(arguments)
    if options.python and options.prepare is None:
        parser.error("--python is for --prepare")
    return options


def phase_names(text: str) -> tuple[str, ...]:
    """`machine,ipc` to names, in the order of the phases."""
    asked = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in asked if name not in phases.NAMES]
    if unknown or not asked:
        found = f"unknown: {', '.join(unknown)}" if unknown else "no phase is named"
        raise argparse.ArgumentTypeError(f"{found}; allowed: {', '.join(phases.NAMES)}")
    return tuple(name for name in phases.NAMES if name in asked)


def positive(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"must be a number above 0, found {text!r}")
    return value


def python_version(text: str) -> str:
    """`3.12` or `cp312`."""
    major, _, minor = text.removeprefix("cp").partition(".")
    if not minor:
        major, minor = major[:1], major[1:]
    if major != "3" or not minor.isdigit():
        raise argparse.ArgumentTypeError(f"must be like 3.12, found {text!r}")
    return f"{major}.{minor}"


def prepare(folder: Path, target: wheels.Target) -> int:
    """Download the wheels and tell what to do with them."""
    try:
        found = wheels.download(folder, target, root=ROOT)
    except (wheels.WheelsError, OSError) as error:
        raise RefusalError(error) from error
    size = sum(wheel.stat().st_size for wheel in found) / 1e6
    print(f"{len(found)} wheels for Python {target.python} on {target.machine}, {size:.1f} MB, in {folder}")
    print(f"On the machine: scripts/gpu_check --wheels {shlex.quote(str(folder))}")
    return PASSED


class Check:
    """One run of the check."""

    def __init__(self, options: argparse.Namespace, arguments: Sequence[str]) -> None:
        self.began = time.monotonic()
        self.ends_at = self.began + 60.0 * options.minutes
        self.size: str = options.size
        self.wheels: Path | None = options.wheels
        self.chosen = [phase for phase in phases.PHASES if phase.name in options.only]
        self.out = usable_folder(options.out or ROOT / "runs" / datetime.now().strftime("gpu_check-%Y%m%d-%H%M%S"))
        self.stop = runner.StopRequest()
        self.outcomes: dict[str, Outcome] = {}
        self.not_reached = "interrupted before it"
        self.head: dict[str, Any] = {
            "format": 1,
            "command": shlex.join(["scripts/gpu_check", *arguments]),
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "size": self.size,
            "minutes": options.minutes,
            "commit": commit(),
            "python": platform.python_version(),
        }

    def run(self) -> int:
        """Run the phases; the files are complete whatever happens."""
        self.stop.listen()
        (self.out / LOG).write_bytes(b"")
        scratch = Path(tempfile.mkdtemp(prefix="gpu_check-"))
        try:
            self._run_in(scratch)
        finally:
            for phase in self.chosen:
                self.outcomes.setdefault(phase.name, Outcome("not run", self.not_reached))
            text = self._write(finished=True)
            shutil.rmtree(scratch, ignore_errors=True)
        print(f"\n{text}\n\n{self.out / JSON}", flush=True)
        return self._exit_code()

    def _run_in(self, scratch: Path) -> None:
        environment = self._environment(scratch)
        self.head["device"] = "not known"

        def start(phase: Phase, limit_s: float) -> Outcome:
            print(f"{phase.name:<8} {phase.what} ...", flush=True)
            setting = Setting(size=self.size, limit_s=limit_s, scratch=scratch, root=ROOT)
            try:
                return runner.run_phase(
                    phase, limit_s, setting=setting, log=self.out / LOG, environment=environment, stop=self.stop
                )
            except OSError as error:
                return Outcome("failed", f"it could not be started: {error}")

        def run(chosen: Sequence[Phase], *, has_gpu: bool) -> None:
            runner.run_phases(
                chosen,
                outcomes=self.outcomes,
                has_gpu=has_gpu,
                ends_at=self.ends_at,
                stop=self.stop,
                start=start,
                after_each=self._after,
            )

        run([phases.START], has_gpu=False)
        start_outcome = self.outcomes["start"]
        found = start_outcome.figures
        self.head["device"] = found.get("gpu") or ("cpu" if "gpu" in found else "not known")
        if start_outcome.status != "passed":
            if not self.stop.requested:
                self.not_reached = "torch could not be tried out (see start)"
        elif not self._fits(found):
            self.not_reached = "torch sees no GPU; --size tiny and --size mid run on a CPU"
        else:
            run(self.chosen, has_gpu=bool(found["gpu"]))

    def _fits(self, found: dict[str, Any]) -> bool:
        """Whether the size can be measured on what was found."""
        return bool(found["gpu"]) or self.size != "7b"

    def _environment(self, scratch: Path) -> dict[str, str]:
        """What every phase finds; packages from wheels are found first."""
        paths = [str(ROOT / "scripts"), str(ROOT)]
        if self.wheels is not None:
            site = scratch / "site"
            try:
                self.head["wheels"] = wheels.unpack(self.wheels, site)
            except wheels.WheelsError as error:
                self.not_reached = "the wheels cannot be used"
                raise RefusalError(error) from error
            paths.insert(0, str(site))
            sys.path.insert(0, str(site))  # where the runner looks for missing packages
            importlib.invalidate_caches()
        before = os.environ.get("PYTHONPATH")
        return os.environ | {
            "PYTHONPATH": os.pathsep.join([*paths, *([before] if before else [])]),
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(scratch),
        }

    def _after(self, phase: Phase, outcome: Outcome) -> None:
        self._write(finished=False)
        reason = f": {outcome.reason}" if outcome.reason else ""
        print(f"{phase.name:<8} {outcome.status} after {outcome.seconds:.0f} s{reason}", flush=True)

    def _report(self, *, finished: bool) -> dict[str, Any]:
        return {
            **self.head,
            "seconds": round(time.monotonic() - self.began, 1),
            "finished": finished,
            "phases": {name: asdict(outcome) for name, outcome in self.outcomes.items()},
        }

    def _write(self, *, finished: bool) -> str:
        """Both files; a full disk costs the files, not what is still to be measured. Returns the table."""
        report = self._report(finished=finished)
        text = table.render(report)
        try:
            write_json(self.out / JSON, report)
            (self.out / TABLE).write_text(f"{text}\n", encoding="utf-8")
        except OSError as error:
            print(f"warning: {self.out} does not take the results: {error}", file=sys.stderr)
        return text

    def _exit_code(self) -> int:
        if self.stop.requested:
            return INTERRUPTED
        start = self.outcomes["start"]
        if start.status != "passed" or not self._fits(start.figures):
            return REFUSED
        passed = [self.outcomes[phase.name].status for phase in self.chosen]
        is_good = all(status in runner.PASSING for status in passed) and "passed" in passed
        return PASSED if is_good else NOT_PASSED


def usable_folder(folder: Path) -> Path:
    """Make the folder and try it out.

    Raises:
        RefusalError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / JSON, {"finished": False})
    except OSError as error:
        raise RefusalError(f"--out: {folder} cannot be written to: {error.strerror}. Name another folder") from error
    return folder.resolve()


def commit() -> str | None:
    """Of the repository, with a mark if something was changed; None where git does not tell."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=ROOT, capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
