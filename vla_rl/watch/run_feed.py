"""Feed of the page with one run, whose folder is read when the page asks."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from vla_rl.files import read_json_object
from vla_rl.reporting.alarms import ALARMS_FILE
from vla_rl.reporting.manifest import MANIFEST_FILE
from vla_rl.reporting.metrics_file import CLOCK_NAMES, METRICS_FILE
from vla_rl.reporting.panels import FIGURES
from vla_rl.reporting.run_folder import read_evaluation, results_of, reward_scale
from vla_rl.reporting.run_index import budget_of, index_run
from vla_rl.reporting.run_summary import evaluation_sentences, manifest_warnings, number_warnings
from vla_rl.reporting.text import printable
from vla_rl.watch.followed_metrics import FollowedMetrics
from vla_rl.watch.run_files import ListedFile, list_logs, list_videos, open_listed, read_end

MOST_ALARMS = 50  # the newest
SHOWN = tuple(dict.fromkeys(name for figure in FIGURES for panel in figure.panels for name in panel.metrics))
MOST_EVALUATIONS = 20  # the newest
SLOWLY_S = 5.0  # how long it is believed what evaluations and videos there are

Value = TypeVar("Value")


class RunFeed:
    """One run. Several threads of the server may ask at a time."""

    def __init__(self, run_dir: Path, name: str) -> None:
        """Create the feed; reads nothing yet.

        Args:
            run_dir: the run's folder.
            name: the run's name on the page.
        """
        self.name = name
        self._run_dir = run_dir
        self._lock = threading.Lock()
        self._manifest: dict[str, Any] | None = None  # empty if it is broken, which the state tells
        self._manifest_of: tuple[int, int] | None = None  # time and inode of the file it was read from
        self._metrics = self._follow()
        self._videos = _Believed(lambda: list_videos(run_dir))
        self._evaluations = _Believed(self._evaluation_sentences)

    def _follow(self) -> FollowedMetrics:
        scale = reward_scale(self._manifest or {})
        return FollowedMetrics(self._run_dir / METRICS_FILE, SHOWN, scales={"rollout/return": 1 / scale})

    def state(self) -> dict[str, Any]:
        """Return everything except curves and logs, as JSON values."""
        with self._lock:
            faults = self._read_metrics()
            row = index_run(self._run_dir)
            metrics, budget = self._metrics, budget_of(self._manifest or {})
            sentences, broken = self._evaluations.get()
            return {
                "name": printable(self.name),
                "folder": printable(str(self._run_dir)),
                "state": row.state,
                "reason": printable(row.reason),
                "started": row.started,
                "age": None if row.seen is None else max(0.0, time.time() - row.seen),
                "clocks": {name: metrics.end.get(name, 0) for name in CLOCK_NAMES},
                "budget": budget,
                "seconds_left": None if budget is None else metrics.seconds_left(budget),
                "latest": {name: value for name, value in metrics.latest.items() if name in SHOWN},
                "share_read": metrics.share_read,
                "alarms": self._alarms(),
                "notes": [
                    *number_warnings(metrics.nonfinite, metrics.latest),
                    *(manifest_warnings(self._manifest) if self._manifest != {} else ()),
                    *map(printable, (*faults, *broken)),
                ],
                "evaluations": sentences,
                "logs": [_as_json(file) for file in list_logs(self._run_dir)],
                "videos": [_as_json(file) for file in self._videos.get()],
            }

    def curves(self, generation: str, num_points: int) -> dict[str, Any]:
        """Return the points that a page lacks; see `Curves.since`."""
        with self._lock:
            self._read_metrics()
            return self._metrics.curves.since(generation, num_points)

    def log(self, name: str) -> str:
        """Return the end of a log.

        Raises:
            FileNotFoundError: the run has no such log.
        """
        with open_listed(self._run_dir, name, list_logs(self._run_dir)) as stream:
            return read_end(stream)

    def video(self, name: str) -> BinaryIO:
        """Open a video.

        Raises:
            FileNotFoundError: it is none of the newest videos.
        """
        return open_listed(self._run_dir, name, self._videos.get())

    def _read_manifest(self) -> None:
        """Read the manifest if it was written since: a run that is resumed may have another budget."""
        path = self._run_dir / MANIFEST_FILE
        try:
            found = path.stat()
            stamp = (found.st_mtime_ns, found.st_ino)
            if stamp != self._manifest_of:
                scale = reward_scale(self._manifest or {})
                self._manifest, self._manifest_of = {}, stamp
                self._manifest = read_json_object(path)
                if reward_scale(self._manifest) != scale:
                    self._metrics = self._follow()
        except FileNotFoundError:
            self._manifest, self._manifest_of = None, None
        except (OSError, ValueError):  # told by the run's state
            self._manifest = {}

    def _read_metrics(self) -> list[str]:
        """Read new log points; return what is wrong with the file."""
        self._read_manifest()
        try:
            self._metrics.read()
        except (OSError, ValueError) as error:
            return [str(error)]
        broken = self._metrics.num_broken
        return [f"{METRICS_FILE}: lines that are no log points, and were left out: {broken:,}."] if broken else []

    def _alarms(self) -> list[dict[str, Any]]:
        """Return the newest alarms, newest first; lines that are none are passed over."""
        path = self._run_dir / ALARMS_FILE
        try:
            with open_listed(self._run_dir, ALARMS_FILE, [ListedFile(ALARMS_FILE, 0, 0.0)]) as stream:
                lines = read_end(stream).splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            return [{"optimizer_step": None, "name": path.name, "sentence": str(error)}]
        alarms = [alarm for line in reversed(lines) if (alarm := _parse_alarm(line)) is not None]
        return alarms[:MOST_ALARMS]

    def _evaluation_sentences(self) -> tuple[list[str], list[str]]:
        """Return a sentence per evaluation and suite, and what is wrong with other evaluations."""
        sentences: list[str] = []
        broken: list[str] = []
        newest = sorted(results_of(self._run_dir), key=_changed)[-MOST_EVALUATIONS:]
        for path in reversed(newest):
            try:
                sentences += evaluation_sentences(read_evaluation(path, below=self._run_dir))
            except (OSError, ValueError) as error:
                broken.append(str(error))
            except (KeyError, TypeError) as error:  # results of another form
                broken.append(f"{path}: expected the results of an evaluation, found no {error}")
        return sentences, broken


class _Believed(Generic[Value]):
    """A value that takes a while to find, and is found anew only now and then."""

    def __init__(self, find: Callable[[], Value]) -> None:
        self._find = find
        self._found: tuple[float, Value] | None = None

    def get(self) -> Value:
        now = time.monotonic()
        if self._found is None or now >= self._found[0] + SLOWLY_S:
            self._found = (now, self._find())
        return self._found[1]


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _as_json(file: ListedFile) -> dict[str, Any]:
    return {
        "name": printable(file.name),
        "file": file.name.encode("utf-8", "surrogateescape").hex(),  # its bytes need not be UTF-8
        "bytes": file.num_bytes,
        "age": max(0.0, time.time() - file.changed),
    }


def _parse_alarm(line: str) -> dict[str, Any] | None:
    try:
        alarm = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match alarm:
        case {"optimizer_step": int() as step, "name": str() as name, "sentence": str() as sentence}:
            return {"optimizer_step": step, "name": printable(name), "sentence": printable(sentence)}
    return None
