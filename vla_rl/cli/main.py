"""Program `vla-rl`: its verbs and exit codes.

0 success, 1 a bug (with its traceback), 2 a user error (one message, no traceback), 130 Ctrl-C or another signal that
asks to end. `vla_rl.cli.start` contains everything that happens before.

Every verb imports what it needs when it is called, so that `vla-rl --help` responds at once.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vla_rl import __version__
from vla_rl.cli import assets as assets_verb
from vla_rl.cli import card as card_verb
from vla_rl.cli import demos as demos_verb
from vla_rl.cli import doctor as doctor_verb
from vla_rl.cli import eval as eval_verb
from vla_rl.cli import exit_codes
from vla_rl.cli import export as export_verb
from vla_rl.cli import metrics as metrics_verb
from vla_rl.cli import push as push_verb
from vla_rl.cli import recipes as recipes_verb
from vla_rl.cli import report as report_verb
from vla_rl.cli import runs as runs_verb
from vla_rl.cli import sft as sft_verb
from vla_rl.cli import study as study_verb
from vla_rl.cli import train as train_verb
from vla_rl.cli import watch as watch_verb
from vla_rl.errors import RunFailureError, UserError

_FIXES = {  # errors of the system that the user can end, by number; the others keep their traceback
    errno.ENAMETOOLONG: "give another path",
    errno.ELOOP: "give another path",
    errno.ENOSPC: "free some space or give another path",
    errno.EDQUOT: "free some space or give another path",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f) or give another path",
    errno.EROFS: "give a path that can be written to",
    errno.EACCES: "give a path that you may use, or change its permissions",
    errno.ENOTDIR: "give another path",
    errno.EISDIR: "give another path",
    errno.EEXIST: "give another path",  # a file where a folder is to be made
}


@contextmanager
def _interruption_told() -> Iterator[None]:
    """Say that a signal ended the program; Typer ends with the same code, but without a word."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise typer.Exit(exit_codes.INTERRUPTED) from None


class Program(TyperGroup):
    """Command group that turns user errors and Ctrl-C into exit codes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Click's types are bundled or not
        """Parse the arguments. Typer imports pydantic for it, so it takes a while."""
        with _interruption_told():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401
        """Run the verb."""
        try:
            with _interruption_told():
                return super().invoke(ctx)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(exit_codes.USER_ERROR) from error
        except RunFailureError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(exit_codes.FAILURE) from error
        except OSError as error:
            fix = _FIXES.get(error.errno or 0)
            if fix is None:
                raise
            print(f"error: {_place(error)}{error.strerror}; {fix}", file=sys.stderr)
            raise typer.Exit(exit_codes.USER_ERROR) from error
        except MemoryError as error:
            print(f"error: out of memory{f': {error}' if str(error) else ''}", file=sys.stderr)
            print("`vla-rl train RECIPE --dry-run` shows what a recipe needs", file=sys.stderr)
            raise typer.Exit(exit_codes.FAILURE) from error


def _place(error: OSError) -> str:
    """Return the path of an error with a colon: of two, as of a copy, the one that could not be written."""
    is_written = error.errno not in (errno.EACCES, errno.ELOOP) and error.filename2 is not None
    place = error.filename2 if is_written else error.filename
    return "" if place is None else f"{place}: "


app = typer.Typer(
    name="vla-rl",
    cls=Program,
    help="Post-train vision-language-action policies with reinforcement learning. A first run: vla-rl train toy",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"vla-rl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Post-train vision-language-action policies with reinforcement learning."""


app.command("sft")(sft_verb.sft)
app.command("train")(train_verb.train)
app.command("eval")(eval_verb.evaluate)
app.command("export")(export_verb.export)
app.command("card")(card_verb.card)
app.command("push")(push_verb.push)
app.command("report")(report_verb.report)
app.command("runs")(runs_verb.runs)
app.command("watch")(watch_verb.watch)
app.command("metrics")(metrics_verb.metrics)
app.command("doctor")(doctor_verb.doctor)
app.add_typer(assets_verb.app, name="assets")
app.add_typer(demos_verb.app, name="demos")
app.add_typer(recipes_verb.app, name="recipes")
app.add_typer(study_verb.app, name="study")
