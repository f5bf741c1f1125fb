"""Files of the GridWorld study: JSON, CSV and a readable table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from vla_rl.files import atomic_write_json, atomic_write_text
from vla_rl.studies.gridworld.enumeration import CASES, Record, labels, pareto_front


def write_records(out: Path, records: Sequence[Record]) -> list[Path]:
    """Write `gridworld.json` (records of case, method, sigma, bias, variance), `gridworld.csv` and `gridworld.md`."""
    json_path, csv_path, table_path = (out / f"gridworld.{suffix}" for suffix in ("json", "csv", "md"))
    rows = [asdict(record) for record in records]
    atomic_write_json(json_path, rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[field.name for field in fields(Record)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)  # an absent sigma becomes an empty cell
    atomic_write_text(csv_path, text.getvalue())
    atomic_write_text(table_path, "# GridWorld: exact bias and variance\n\n" + markdown_table(records))
    return [json_path, csv_path, table_path]


def markdown_table(records: Sequence[Record]) -> str:
    """Return a row per method, a bias and a variance column per case; an asterisk marks the case's Pareto front."""
    names, cells = labels(), dict[str, list[str]]()
    for case in CASES:
        of_case = [record for record in records if record.case == case]
        front = pareto_front(of_case)
        for record in of_case:
            star = "*" if record in front else " "
            cells.setdefault(names[record.method, record.sigma], []).extend(
                (f"{record.bias:.9f}", f"{record.variance:.9f}{star}")
            )
    header = ["method", *(f"{case} {quantity}" for case in CASES for quantity in ("bias", "variance"))]
    lines = [header, *([name, *numbers] for name, numbers in cells.items())]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    table = "\n".join(
        f"| {' | '.join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))} |" for line in lines
    )
    return f"{table}\n\n\\* on the Pareto front of its case: no other method has both less bias and less variance.\n"
