"""Prompts of a run's tasks, tokenised once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vla_rl.policies.openvla_oft.config import BOS_ID, LONE_SPACE_ID, PAD_ID
from vla_rl.policies.openvla_oft.headers import refuse_pointer

FIRST_IDS = 8  # shown of a tokenizer that is not Llama's


@dataclass(frozen=True, slots=True)
class PromptTable:
    """Right-padded prompts, one row per task, each ending in the lone space."""

    ids: NDArray[np.int64]  # (tasks, L)
    lengths: NDArray[np.int64]  # (tasks,)

    @property
    def distinct_lengths(self) -> tuple[int, ...]:
        """Return the distinct lengths, ascending.

        If there is only one, no row is padded and attention needs no mask.
        """
        return tuple(np.unique(self.lengths).tolist())


def prompt_text(task: str) -> str:
    """Return the sentence that OpenVLA was trained with."""
    return f"In: What action should the robot take to {task.lower()}?\nOut:"


def read_tokenizer(directory: Path) -> Tokenizer:
    """Read the tokenizer of a checkpoint; ValueError if `tokenizer.json` is missing or broken."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path}: not found; copy it from the published checkpoint (it is Llama-2's tokenizer)")
    refuse_pointer(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers has no exception class of its own
        raise ValueError(
            f"{path}: no tokenizer ({error}); copy it from the published checkpoint (it is Llama-2's tokenizer)"
        ) from error


def prompt_table(tokenizer: Tokenizer, tasks: tuple[str, ...]) -> PromptTable:
    """Tokenise the prompts of `tasks`.

    Raises:
        ValueError: no task is given, or the ids cannot be Llama's (BOS missing, or ids beyond the base vocabulary).
    """
    if not tasks:
        raise ValueError("tasks is empty; a policy needs the text of at least one task")
    rows = [tokenize_prompt(tokenizer, task) for task in tasks]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.full((len(rows), int(lengths.max())), PAD_ID, dtype=np.int64)
    for row, padded in zip(rows, ids, strict=True):
        padded[: len(row)] = row
    return PromptTable(ids=ids, lengths=lengths)


def tokenize_prompt(tokenizer: Tokenizer, task: str) -> list[int]:
    """Return the ids of one prompt: BOS first, the lone space 29871 last."""
    ids: list[int] = tokenizer.encode(prompt_text(task)).ids
    if not ids or ids[0] != BOS_ID or max(ids) >= PAD_ID:
        raise ValueError(
            f"the tokenizer gives {ids[:FIRST_IDS]}... for a prompt; expected BOS ({BOS_ID}) first and ids below "
            f"{PAD_ID}, as Llama-2's tokenizer gives"
        )
    return ids if ids[-1] == LONE_SPACE_ID else [*ids, LONE_SPACE_ID]
