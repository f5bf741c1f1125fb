"""Fault-tolerant stdout and stderr: if a terminal is gone, full or stopped, output is lost but the program continues.

    stdout, stderr = guard_streams()       # call first; replaces `sys.stdout` and `sys.stderr`
    print("σ = 0.2")                       # never raises, even with a broken pipe, a full disk, or an ASCII terminal
    if stdout.error is not None: ...

Everything that writes through `sys.stdout` or `sys.stderr` is covered: print, rich, logging, warnings, tracebacks,
progress bars.
"""

from __future__ import annotations

import codecs
import io
import logging
import os
import select
import sys
import unicodedata
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PLAIN = "vla_rl.plain"  # name of the error handler that spells out characters a terminal cannot encode
PATIENCE_S = 2.0  # how long progress lines wait for a reader that has stopped reading (Ctrl-S, a paused pager)
STALLED_S = 10.0  # a reader that takes nothing from a non-blocking stream for this long is considered gone
_SPELLED = {
    "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{EM DASH}": "-", "\N{MIDDLE DOT}": "|",
    "\N{MULTIPLICATION SIGN}": "x", "\N{PLUS-MINUS SIGN}": "+-", "\N{LESS-THAN OR EQUAL TO}": "<=",
    "\N{GREATER-THAN OR EQUAL TO}": ">=",
    "\N{NOT EQUAL TO}": "!=", "\N{RIGHTWARDS ARROW}": "->", "\N{LEFTWARDS ARROW}": "<-", "\N{SUPERSCRIPT TWO}": "^2",
    "\N{SUPERSCRIPT THREE}": "^3", "\N{NABLA}": "grad ", "\N{INFINITY}": "inf",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"', "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
    "\N{LEFT SINGLE QUOTATION MARK}": "'", "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{BOX DRAWINGS LIGHT VERTICAL}": "|", "\N{BOX DRAWINGS HEAVY VERTICAL}": "|",
    "\N{BOX DRAWINGS LIGHT HORIZONTAL}": "-", "\N{BOX DRAWINGS HEAVY HORIZONTAL}": "-",
}  # fmt: skip

log = logging.getLogger(__name__)
_losses: list[str] = []
_guarded: list[EnduringFile] = []


def losses() -> tuple[str, ...]:
    """Return what was lost so far, one sentence per stream."""
    return tuple(_losses)


class EnduringFile(io.RawIOBase):
    """File descriptor whose writes never fail: after an error all output is dropped, and the loss is noted once."""

    def __init__(self, descriptor: int, name: str) -> None:
        """Write to a descriptor, which stays open; messages call it `name`."""
        super().__init__()
        self._descriptor, self._name = descriptor, name
        self.error: OSError | None = None  # error of the write that failed
        self.patience_s: float | None = None  # output is dropped after this long without a reader; None: never
        self._dropped = 0  # bytes since the reader stopped

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, content: ReadableBuffer, /) -> int:
        """Write some of the bytes; return how many were consumed."""
        while self.error is None:
            try:
                if self.patience_s is None:
                    return os.write(self._descriptor, content)
                if not self._is_read(self.patience_s):
                    break
                # More at once could block: a pipe is writable as soon as it has room for this much.
                return os.write(self._descriptor, memoryview(content)[: select.PIPE_BUF])
            except BlockingIOError as error:  # a process that shares the other end made it non-blocking
                if not select.select([], [self._descriptor], [], STALLED_S)[1]:
                    self.lose(error)
            except OSError as error:
                self.lose(error)
        self._dropped += memoryview(content).nbytes
        return memoryview(content).nbytes

    def _is_read(self, patience_s: float) -> bool:
        """Return whether there is room for a write; wait for it unless the reader is known to have stopped."""
        if not select.select([], [self._descriptor], [], 0.0 if self._dropped else patience_s)[1]:
            return False
        if self._dropped:
            note = f"\n[{self._dropped} bytes of output were dropped while nobody read them]\n"
            self._dropped = 0
            os.write(self._descriptor, note.encode("ascii"))
        return True

    def lose(self, error: OSError) -> None:
        """Drop all output from now on."""
        self.error = error
        _losses.append(f"{self._name} cannot be written to ({error.strerror}): it is silent from now on")
        if log.hasHandlers():  # only to a run's log; otherwise this would go to stderr, which may be the failed stream
            log.warning("%s", _losses[-1])


def guard_streams() -> tuple[EnduringFile, EnduringFile]:
    """Replace `sys.stdout` and `sys.stderr`; return the files below them.

    A closed standard descriptor is opened on the null device: otherwise the next file that the program opens would get
    its number, and output to "stdout" would end up in that file.
    """
    codecs.register_error(PLAIN, spell_out)
    closed = [number for number in (0, 1, 2) if not _is_open(number)]
    for _ in closed:
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # lowest free number: the first closed
    stdout, stderr = _guarded[:] = EnduringFile(1, "stdout"), EnduringFile(2, "stderr")
    _losses.extend(f"{file} is closed: nothing is shown there" for number, file in ((1, "stdout"), (2, "stderr"))
                   if number in closed)  # fmt: skip
    sys.stdout = sys.__stdout__ = _text(stdout, sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _text(stderr, sys.stderr)  # type: ignore[misc]
    return stdout, stderr


def drop_what_nobody_reads() -> None:
    """Let the guarded streams drop output while their reader has stopped, so that it cannot stop the program."""
    for file in _guarded:
        file.patience_s = PATIENCE_S


def spell_out(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode characters a terminal cannot show in ASCII (`σ` as `sigma`, `−` as `-`); a codec error handler."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":  # an undecodable byte of a file's name: keep it
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return _in_ascii(character), error.start + 1


def _in_ascii(character: str) -> str:
    if character in _SPELLED:
        return _SPELLED[character]
    words = unicodedata.name(character, "").split(" WITH ")[0].split()
    if words[:1] == ["GREEK"] and "LETTER" in words:
        letter = words[-1].replace("LAMDA", "LAMBDA")
        return letter.capitalize() if "CAPITAL" in words else letter.lower()
    if words[:1] == ["BOX"]:
        return "+"
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or ("#" if "BLOCK" in words else "?")


def _text(file: EnduringFile, former: TextIO | None) -> io.TextIOWrapper:
    wrapped = former if isinstance(former, io.TextIOWrapper) else None
    if wrapped is not None:
        wrapped.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(file),
        encoding="utf-8" if wrapped is None else wrapped.encoding,
        errors=PLAIN,
        line_buffering=wrapped is not None and wrapped.line_buffering,
        write_through=wrapped is not None and wrapped.write_through,
    )


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
