"""The report as text: how every phase ended, then the figures beside what is expected, then the last words of failures.

Takes what stands in gpu_check.json and nothing else; a figure that is not there is left out. Standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gpu_check_parts.expected import EXPECTED

WIDTH = 118
UNREADABLE = "the rest stands in the JSON alone"
Row = tuple[str, str, str]  # what, measured, key of `EXPECTED` or ""


def render(report: Mapping[str, Any]) -> str:
    """The whole table."""
    phases: Mapping[str, Any] = report["phases"]
    is_real = report["size"] == "7b"
    lines = [
        f"gpu_check, size {report['size']}, on {report.get('device', 'not known')}, "
        f"{report['seconds']:.0f} s, commit {report.get('commit') or 'not known'}",
        "",
    ]
    lines += [_status(name, phase) for name, phase in phases.items()]
    figures = [row for name, phase in phases.items() for row in _figures(name, phase)]
    if figures:
        head = (
            "expected of an H100: calculated, not measured"
            if is_real
            else "(this size says nothing about the 7B model)"
        )
        rows = [("figure", "measured", head)]
        rows += [(what, found, EXPECTED.get(key, "") if is_real else "") for what, found, key in figures]
        wide, wider = (max(len(row[column]) for row in rows) for column in (0, 1))
        lines += ["", *(f"{what:<{wide}}  {found:<{wider}}  {third}".rstrip() for what, found, third in rows)]
    for name, phase in phases.items():
        broken = [check for check in phase["checks"] if not check["holds"]]
        if phase["last_lines"] and phase["status"] != "passed":
            lines += ["", f"--- {name}: {phase['status']}; the last it said (all of it: gpu_check.log)"]
            lines += [f"    does not hold: {check['what']}: {check['found']}"[:WIDTH] for check in broken]
            lines += [f"    {line}"[:WIDTH] for line in phase["last_lines"][-8:]]
    return "\n".join(lines)


def _status(name: str, phase: Mapping[str, Any]) -> str:
    seconds = f"{phase['seconds']:.0f} s" if phase["seconds"] else "-"
    return f"{name:<9} {phase['status']:<12} {seconds:>6}  {phase['reason']}"[:WIDTH].rstrip()


def _figures(name: str, phase: Mapping[str, Any]) -> Iterator[Row]:
    """A phase that was killed has only some of its figures: what cannot be read is left out."""
    if name not in ROWS:
        return
    try:
        for what, found, key in ROWS[name](phase["figures"]):
            yield f"{name}: {what}", found, f"{name}.{key}" if key else ""
    except (KeyError, TypeError, ValueError) as error:  # the table must not cost the figures of the other phases
        yield f"{name}: {UNREADABLE}", f"{type(error).__name__}: {error}", ""


def _machine(figures: Mapping[str, Any]) -> Iterator[Row]:
    card, versions = figures.get("card", {}), figures.get("versions", {})
    if card:
        memory = f"{card['memory_gib']} GiB, {card['free_gib']} free"
        yield "card", f"{card['name']}, {memory}", ""
        yield "driver", str(card.get("driver_version", "nvidia-smi does not tell")), ""
    if versions:
        yield "torch, transformers", f"{versions['torch']}, {versions.get('transformers', 'none')}", ""
    for rate in figures.get("matrix", []):
        yield f"matrix, {rate['what']}", f"{rate['tflops']:.4g} TFLOP/s", rate["what"]
    for way, speed in figures.get("copies", {}).items():
        yield f"copy, {way}", f"{speed:.3g} GB/s", way
    for row in figures.get("attention", []):
        masked = ", masked" if row["masked"] else ""
        times = f"{row['ms']:.3g} ms, {row['with_backward_ms']:.3g} with backward"
        yield f"attention, {row['what']} x {row['batch']}{masked}", f"{_choice(row)}: {times}", ""


def _choice(row: Mapping[str, Any]) -> str:
    ours, by_itself = str(row["choice"]), str(row.get("choice_of_torch", row["choice"]))
    return ours if by_itself == ours else f"{ours} (torch by itself {by_itself})"


def _ipc(figures: Mapping[str, Any]) -> Iterator[Row]:
    for way, found in figures.get("ways", {}).items():
        lost = max(found["allocated_bytes_lost"], found["on_card_bytes_lost"], 0)
        yield f"a child that ends by {way}", f"{lost / 2**20:.0f} MiB lost", "lost"


def _egl(figures: Mapping[str, Any]) -> Iterator[Row]:
    if "renderer" in figures:
        yield "drawn by", f"{figures.get('vendor', '')} {figures['renderer']}".strip()[:60], ""
    if "frame_ms" in figures:
        yield "one frame of 256 pixels", f"{figures['frame_ms']:.2f} ms", ""


def _model(figures: Mapping[str, Any]) -> Iterator[Row]:
    plain = (
        ("matrix_tflops", "matrix rate, for utilisation", ".4g", "TFLOP/s", ""),
        ("build_s", "drawing the weights", ".1f", "s", ""),
        ("vision_ms", "vision of one micro-batch", ".3g", "ms", "vision"),
        ("optimizer_ms", "AdamW", ".3g", "ms", ""),
        ("compile_s", "compiling the layers", ".1f", "s", ""),
    )
    for key, what, form, unit, expected in plain:
        if key in figures:
            yield what, f"{figures[key]:{form}} {unit}", expected
    for batch, row in figures.get("inference", {}).items():
        yield f"inference, {batch} decision(s)", _pass(row), f"inference {batch}"
    passes = (("training", ""), ("training_compiled", ", layers compiled"), ("inference_compiled", ", layers compiled"))
    for key, how in passes:
        if key in figures:
            row = figures[key]
            yield f"{key.split('_')[0]}{how}, {row['batch']} decisions", _pass(row), key.replace("_", " ")
    for what, found in figures.get("noise", {}).items():
        if isinstance(found, dict):
            yield f"|log ratio| at lag 0, {what}", _noise(found), "noise"


def _pass(row: Mapping[str, Any]) -> str:
    if row["ms"] is None:
        return str(row["why"])
    peak = f", {row['peak_gib']['reserved']} GiB" if row.get("peak_gib") else ""
    return f"{row['ms']:.3g} ms, {row['decisions_per_s']:.3g}/s, {row['utilisation']:.0%}{peak}"


def _noise(found: Mapping[str, float]) -> str:
    return f"p95 {found['token_p95']:.2g}, joint mean {found['joint_mean']:.2g}"


def _cell(figures: Mapping[str, Any]) -> Iterator[Row]:
    updates = figures.get("updates", [])
    if "setup_s" in figures:
        yield "from nothing to a cell", f"{figures['setup_s']:.1f} s", ""
    if "first_batch_s" in figures:
        yield "from its start to the first batch", f"{figures['first_batch_s']:.1f} s", ""
    if updates:
        seconds = sorted(row["update_s"] for row in updates)
        middle = seconds[len(seconds) // 2]
        yield f"update, median of {len(updates)}", f"{middle:.3g} s, {updates[-1]['decisions']} decisions", "update"
        parts = min(updates, key=lambda row: abs(row["update_s"] - middle)).get("seconds")
        if parts:
            yield "its parts", ", ".join(f"{part} {took:.3g} s" for part, took in parts.items()), ""
        yield "publishing", f"{max(row['publish_ms'] for row in updates):.3g} ms", "publish"
        first = updates[0]
        if "ratio/lag0_abs_log_p95" in first:
            yield "|log ratio| p95 of the first update at lag 0", f"{first['ratio/lag0_abs_log_p95']:.2g}", "lag0"
    rates = figures.get("rates") or {}
    if rates:
        yield "consumed", f"{rates['perf/learner_samples_per_s']:.3g} decisions/s", "consumed"
        yield "collected", f"{rates['perf/decisions_per_s']:.3g} decisions/s", "collected"
        yield "the learner waits", f"{rates['perf/learner_wait_fraction']:.0%} of the time", ""
        yield "env workers wait for actions", f"{rates['perf/env_wait_fraction']:.0%} of the time", ""
        yield "env workers are held back", f"{rates['perf/env_held_back_fraction']:.0%} of the time", ""
        yield "inference batch", f"{rates['perf/inference_batch_size']:.1f} decisions", ""
    if "utilisation" in figures:
        used = figures["utilisation"]
        yield "utilisation", f"{used['training']:.0%} training, {used['acting']:.0%} acting", ""
    if figures.get("estimate_gib") is not None:
        peak = (figures.get("peak_gib") or {}).get("card")
        found = "not known" if peak is None else f"{peak:.1f} GiB on the card"
        yield f"memory; the dry run says {figures['estimate_gib']:.1f} GiB", found, ""
    if "gib_lost" in figures:
        yield "memory lost when the cell has ended", f"{figures['gib_lost']:.2f} GiB", "lost"


def _toy(figures: Mapping[str, Any]) -> Iterator[Row]:
    rate, seconds = figures.get("rollout/success_rate"), figures.get("seconds")
    if rate is not None and seconds is not None:
        yield "success", f"{rate:.0%} after {figures.get('optimizer_steps')} updates, {seconds:.0f} s", "success"


def _tests(figures: Mapping[str, Any]) -> Iterator[Row]:
    if "passed" in figures:
        counts = (
            f"{figures['passed']} passed, {len(figures.get('broken', []))} failed, {figures.get('skipped', 0)} skipped"
        )
        yield "pytest -m gpu", counts, ""


def _graphs(figures: Mapping[str, Any]) -> Iterator[Row]:
    for size, found in figures.items():
        times = f"{found['ms']:.3g} ms, plain {found['plain_ms']:.3g} ms"
        yield f"{size}, {found['batch']} decisions", times, ""
        yield f"{size}, compiling", f"{found['compile_s']:.1f} s", ""
        yield f"{size}, graphs skipped", str(found["skips"]), "skips"


ROWS: dict[str, Callable[[Mapping[str, Any]], Iterator[Row]]] = {
    "machine": _machine,
    "ipc": _ipc,
    "egl": _egl,
    "model": _model,
    "cell": _cell,
    "toy": _toy,
    "tests": _tests,
    "graphs": _graphs,
}
