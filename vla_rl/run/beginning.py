"""Beginning of a run on one rank, which is the same for every stage of training.

In this order: the folder and the checkpoint are found and compared with those of the other ranks; the ranks are started
if this process is none of them; the folder is claimed; then recipe, manifest and state are recorded, and only then
anything is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from torch import nn

from vla_rl.errors import UserError, preflight
from vla_rl.learner.checkpoint import CheckpointInfo, Search
from vla_rl.learner.launch import launched_rank
from vla_rl.learner.notice_board import NoticeBoard
from vla_rl.recipe import BudgetSection, OptimizerSteps, Recipe, SupervisedRecipe, load_any_recipe
from vla_rl.reporting.metrics_file import Clocks, MetricsWriter
from vla_rl.reporting.run_folder import RECIPE_FILE
from vla_rl.reporting.run_state import RunLife
from vla_rl.run.couriers import Couriers
from vla_rl.run.folder import RunFolder
from vla_rl.run.roll_call import Facts, common_start, compare_facts, compare_weights, kept_folder
from vla_rl.section import Problem

AnyRecipe = Recipe | SupervisedRecipe
Budget = TypeVar("Budget", BudgetSection, OptimizerSteps)


def plain_lines(console: Console) -> Callable[[str], None]:
    """Return a function that prints one line as it is: a path in it is neither wrapped nor taken for markup."""
    return partial(console.print, markup=False, highlight=False, soft_wrap=True)


def is_first_rank() -> bool:
    """Return whether this process is rank 0, alone, or what starts the ranks."""
    launched = launched_rank()
    return launched is None or launched[0] == 0


def open_folder(run_dir: Path, *, resume: bool, verb: str) -> RunFolder:
    """Check that a run may write here; only the first rank minds a run that is there already. Writes nothing.

    Raises:
        ValueError: as `RunFolder.open`.
    """
    return RunFolder.open(run_dir, resume=resume or not is_first_rank(), verb=verb)


def found_in(run_dir: Path, *, resume: bool, verb: str) -> CheckpointInfo | None:
    """Return the checkpoint that a run would resume from, after checking its folder. Writes nothing.

    Raises:
        ValueError: as `RunFolder.open` and `RunFolder.find_start`.
    """
    folder = open_folder(run_dir, resume=resume, verb=verb)
    return folder.find_start().newest if resume else None


@dataclass(frozen=True, slots=True)
class Claim:
    """The claimed folder of a run."""

    is_keeper: bool  # this rank writes what the folder has once
    life: RunLife


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """Folder, checkpoint and fellow ranks that one rank of a run begins with."""

    folder: RunFolder
    resume: bool
    newest: CheckpointInfo | None  # that every rank resumes from; None: a new run
    rank: int
    num_ranks: int
    board: NoticeBoard | None  # of the ranks; None: there is one
    worth_knowing: tuple[str, ...]  # for the user, one line each
    say: Callable[[str], None]

    def tell(self, contradictions: Sequence[Problem] = ()) -> None:
        """Say what is worth knowing, once for all ranks.

        Args:
            contradictions: values of the recipe of a resumed run that have no effect. No new run begins with them, but
                a run that did continues.
        """
        told = [f"warning: {it.path} has no effect: {it.rule} (found {it.found})" for it in contradictions]
        for line in (*self.worth_knowing, *told) if self.rank == 0 else ():
            self.say(line)

    def compare_weights(self, policy: nn.Module) -> None:
        """Compare the ranks' policies; see `roll_call.compare_weights`."""
        if self.board is not None:
            compare_weights(self.board, policy)

    @contextmanager
    def claimed(self, *, together: bool = False) -> Iterator[Claim]:
        """Create the run's folder and lock it; how the run ends is recorded in it, once `record` has been called.

        Args:
            together: all ranks must share the folder.

        Raises:
            UserError: a folder cannot be used, or is not shared and must be.
        """
        with ExitStack() as stack:
            keeps = stack.enter_context(kept_folder(self.folder, self.board, resume=self.resume, together=together))
            life = stack.enter_context(RunLife(self.folder.path))
            if self.board is not None:
                stack.enter_context(self.board.explained())
            yield Claim(keeps, life)

    def record(
        self,
        recipe: AnyRecipe,
        claim: Claim,
        couriers: Couriers,
        *,
        trains: bool,
        device: str,
        assets: Mapping[str, Any],
        deviations: Sequence[str] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Write what a run records before it trains: recipe, manifest and state; and tell its trackers.

        Args:
            recipe: resolved.
            claim: the folder's.
            couriers: of the trackers.
            trains: whether the run has anything left to train; otherwise recipe and manifest stay as they are, because
                they tell what trained its policy, and so do the trackers.
            device: that the run trains on.
            assets: of the manifest; see `RunFolder.write_records`.
            deviations: of the manifest.
            extra: further entries of the manifest.

        Raises:
            UserError: the record of a tracker's earlier session is broken.
            OSError: a file cannot be written.
        """
        if claim.is_keeper:
            aside = self.folder.set_metrics_aside() if self.resume and self.newest is None else None
            if aside is not None:
                self.say(
                    f"warning: {self.folder.path} has no checkpoint, so the run begins anew; its former log points are "
                    f"in {aside}"
                )
            begun: dict[str, Any] = {
                "num_ranks": self.num_ranks,
                "device": device,
                "resumed_from": str(self.newest.path) if self.newest else None,
            }
            if trains:
                self.folder.write_records(
                    recipe,
                    assets=assets,
                    deviations=deviations,
                    extra=begun | dict(extra or {}),
                    after_optimizer_step=self.newest.optimizer_steps if self.newest else 0,
                )
        if self.rank == 0:
            told = {} if trains else self.folder.recorded_recipe()
            told = told or recipe.model_dump(mode="json", by_alias=True)
            with preflight():
                couriers.start(told["name"], told, resume=self.resume)
        if claim.is_keeper:
            claim.life.begin()
            if self.board is not None:
                self.board.at_forced_end = claim.life.fail

    def cut_short(self, budget: Budget, is_spent: Callable[[Budget], bool]) -> str:
        """Return how the budget of a resume ends a run at once; empty if it does not, or if the recorded one does too.

        Call it before `record`, which writes the recipe that is compared.

        Args:
            budget: of this call.
            is_spent: whether the run has used up a budget.
        """
        if not is_spent(budget):
            return ""
        try:
            recorded = load_any_recipe(self.folder.path / RECIPE_FILE).budget
        except UserError:  # there is none, or it is of another version
            return ""
        if not isinstance(recorded, type(budget)) or is_spent(recorded):
            return ""
        changed = [
            f"budget.{name}={'null' if value is None else value}"
            for name, value in budget
            if value != getattr(recorded, name)
        ]
        return f"it was resumed with {', '.join(changed)}, which was spent already"

    def metrics_writer(self, couriers: Couriers, clocks: Clocks, *, tensorboard: bool) -> MetricsWriter:
        """Return the writer of log points, which is rank 0's; `clocks` are those that a resumed run goes on from."""
        return MetricsWriter(
            self.folder.path,
            tensorboard=tensorboard,
            resume_at=clocks if self.resume else None,
            sinks=[couriers],
        )


def find_beginning(
    recipe: AnyRecipe, folder: RunFolder, *, resume: bool, board: NoticeBoard | None, console: Console
) -> Beginning:
    """Find what this rank begins from, and compare it with the other ranks. Writes nothing.

    Args:
        recipe: everything about the run, as all ranks were given it.
        folder: of the run.
        resume: resume from the newest complete checkpoint in it; a new run if none was ever written.
        board: of the ranks; None: this is none of several.
        console: where rank 0 says what a user should know.

    Raises:
        ValueError: no checkpoint is whole, or the ranks differ in what they have.
    """
    launched = launched_rank()
    search = folder.find_start() if resume else Search()
    newest = search.newest
    if board is not None:
        facts = Facts.of(recipe.model_dump(mode="json"), folder.path, resume=resume, newest=newest)
        newest = common_start(board, compare_facts(board, facts), folder.path, newest)
    worth_knowing = [f"warning: {warning}" for warning in search.warnings]
    if launched is not None and recipe.learner.num_ranks not in ("auto", launched[1]):
        worth_knowing.append(
            f"the launcher started {launched[1]} ranks, and so many train; "
            f"learner.num_ranks={recipe.learner.num_ranks} counts only without a launcher"
        )
    rank, num_ranks = launched or (0, 1)
    return Beginning(
        folder=folder,
        resume=resume,
        newest=newest,
        rank=rank,
        num_ranks=num_ranks,
        board=board,
        worth_knowing=tuple(worth_knowing),
        say=plain_lines(console),
    )
