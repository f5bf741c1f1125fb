"""Instruction in other words."""

from __future__ import annotations

from collections.abc import Sequence

from vla_rl.envs.libero.perturbations.kind import Kind, Numbers
from vla_rl.types import TaskInfo

# Whole words at the start of a sentence or after "and".
SYNONYMS = {
    "pick up": "grab",
    "put": "set",
    "place": "set",
    "open": "pull open",
    "close": "shut",
    "turn on": "switch on",
    "turn off": "switch off",
    "push": "slide",
    "stack": "pile",
}
FORMS = (
    "{other}",
    "could you please {other}",
    "before dinner is served please {other}",
    "the kitchen is a bit messy today and the counter has been wiped already so now {other} thank you",
    "everything has to be in its proper place before the guests arrive so think about which object is meant and where "
    "it belongs and then {other} and after that do nothing else",
)


def reworded(sentence: str) -> str:
    """Return an instruction with other verbs."""
    clauses = sentence.split(" and ")
    return " and ".join(_other_verb(clause) for clause in clauses)


def _other_verb(clause: str) -> str:
    for verb, other in SYNONYMS.items():
        if clause == verb or clause.startswith(f"{verb} "):
            return other + clause[len(verb) :]
    return clause


class Paraphrase(Kind):
    """The policy reads the instruction in other words; the task is the same."""

    name = "paraphrase"
    group = "instruction"
    summary = "the instruction is given in other words"
    source = "ours: other verbs in ever longer sentences (LIBERO-plus's 50 sentences per task are written by a model)"
    tells = True

    def numbers(self, level: int) -> Numbers:
        """Return the form of the sentence, and how many words it adds."""
        form = FORMS[level - 1]
        return {"form": form.format(other="..."), "words_added": len(form.split()) - 1, "verbs": dict(SYNONYMS)}

    def instruction(self, level: int, task: TaskInfo, suite: Sequence[TaskInfo]) -> str:  # noqa: ARG002
        """Return the sentence."""
        return FORMS[level - 1].format(other=reworded(task.language))
