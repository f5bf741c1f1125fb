"""Board on which the ranks of a run tell each other facts at the start, signs of life, and causes of an end.

A collective cannot say why it failed, and one on a GPU waits many minutes for a rank that is gone. The board is the
key-value store in which the ranks find each other (torch's TCPStore at MASTER_ADDR:MASTER_PORT, of the launcher or of
rank 0), so it needs no other port and works before a process group exists:

* `exchange` compares what must be equal before anything heavy is built;
* a thread of every rank counts up its own sign of life and looks at those of the others;
* the first rank that fails writes the cause, and the others end with it, even from inside a collective.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self, TypeVar

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from vla_rl.errors import RunFailureError, UserError
from vla_rl.learner.rank_failures import (
    AnotherRankError,
    CommonError,
    Failure,
    first_line,
    in_words,
    report_to_launcher,
)
from vla_rl.learner.rank_store import PATIENCE_S, STORE_TIMEOUT, address, store_of_ranks, uses_agent_store

logger = logging.getLogger(__name__)

JOIN_S = 600.0  # longest time between the first rank's start and the last one's
BEAT_S = 1.0  # between two signs of life; more with many ranks
RANKS_PER_BEAT = 64  # with so many, every rank reads so many counters in each `BEAT_S`
SILENT_S = 120.0  # a rank that gives no sign of life for so long is gone
GONE_BEATS = 8.0  # the same in beats, once a collective has failed
LONGEST_DELAY = 10.0  # a busy machine may delay beats so many times until nobody waits for a cause any more
HEARD_S = 10.0  # longest time for which a rank that failed stays so that the others learn why
AFTER_FAILURE_S = 3.0  # the same once they do, until they no longer use the store
GRACE_S = 60.0  # a rank that does not come to its end by itself within this time after a failure is ended
LONGEST = 120  # characters of another program's message
_LEFT = "left"
Answer = TypeVar("Answer")


def own_name(rank: int) -> str:
    """Return this rank's name for people: its number, its machine and, where there are several, the launcher's node."""
    node = f", node {os.environ['GROUP_RANK']}" if os.environ.get("GROUP_WORLD_SIZE", "1") != "1" else ""
    return f"rank {rank} ({socket.gethostname()}{node})"


class NoticeBoard:
    """Board of one rank. Enter it in the main thread; it is left when the `with` block ends, also by an exception.

        with NoticeBoard.join(rank, num_ranks) as board:
            everyone = board.exchange("recipe", text)   # what every rank has to say, in rank order
            ...
            board.check()                               # raises if another rank has failed

    An exception that leaves the block is told to the other ranks, or, if another rank's failure caused it, becomes an
    `AnotherRankError` or a `UserError` with that cause.

    Args:
        store: store that all ranks share, with nothing of another start of them.
        rank: this rank.
        num_ranks: all ranks.
        name: of this rank, for people.
        beat_s: seconds between two signs of life.
        silent_s: seconds without one after which a rank is gone.
        grace_s: seconds after a failure until this process is ended if it does not end by itself; `at_forced_end` is
            called before that.
        heed: called now and then while this rank waits for others for long; raises if it was asked to end.
    """

    def __init__(
        self,
        store: Store,
        *,
        rank: int,
        num_ranks: int,
        name: str,
        beat_s: float = BEAT_S,
        silent_s: float = SILENT_S,
        grace_s: float = GRACE_S,
        heed: Callable[[], None] = lambda: None,
    ) -> None:
        self.rank, self.num_ranks, self.name = rank, num_ranks, name
        self._store, self._lock = store, threading.Lock()
        self._beat_s = beat_s * max(1.0, num_ranks / RANKS_PER_BEAT)
        self._silent_s, self._grace_s = silent_s, grace_s
        self._names = [f"rank {each}" for each in range(num_ranks)]
        self._beats = 0
        self._seen: list[tuple[bytes, float]] = []  # of every rank: the newest sign of life, and when it came
        self._looked = 0.0
        self._failure: Failure | None = None
        self._is_lost = False  # the store no longer answers, and torch would tell so at every further try
        self._told_of_waiting = False
        self._ended = threading.Event()
        self._watch: threading.Thread | None = None
        self._heed = heed
        self.at_forced_end: Callable[[str], None] = lambda _cause: None

    @classmethod
    def join(
        cls, rank: int, num_ranks: int, *, timeout_s: float = JOIN_S, heed: Callable[[], None] = lambda: None
    ) -> Self:
        """Connect to the store at MASTER_ADDR:MASTER_PORT.

        Args:
            rank: this rank.
            num_ranks: all ranks.
            timeout_s: longest wait for whoever hosts the store.
            heed: called now and then while this rank waits for others for long; raises if it was asked to end.

        Raises:
            UserError: the address is missing, the port is taken, or nobody answers there.
        """
        store = store_of_ranks(rank, timeout_s=timeout_s, heed=heed)
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(
            PrefixStore(f"vla_rl/{start}", store), rank=rank, num_ranks=num_ranks, name=own_name(rank), heed=heed
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_failure = isinstance(error, Exception | KeyboardInterrupt)
        is_failure |= isinstance(error, SystemExit) and bool(error.code)
        try:
            if is_failure:
                assert error is not None
                self._fail(error)
        finally:
            self.leave()
            if is_failure:
                _end_for_certain(self._grace_s)

    @property
    def failure(self) -> Failure | None:
        """Return why another rank ended, if one did; known some seconds later."""
        return self._failure

    @property
    def has_failed(self) -> bool:
        """Return whether another rank has failed or is gone."""
        return self._failure is not None

    def check(self) -> None:
        """Raise if another rank has failed or is gone.

        Raises:
            AnotherRankError: says which and why.
        """
        if self._failure is not None:
            raise AnotherRankError(self._failure.cause)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Give the failure of a collective its cause, within whatever records how the run ended.

        Raises:
            AnotherRankError: a `RuntimeError` was raised inside, and another rank has failed or is gone.
        """
        try:
            yield
        except RunFailureError:
            raise
        except RuntimeError as error:
            self._wait_for_cause()
            if self._failure is not None:
                noticed = f"{type(error).__name__}: {first_line(error)}"
                raise AnotherRankError(f"{self._failure.cause}. Noticed here as {noticed[:LONGEST]}") from error
            raise

    def exchange(self, topic: str, text: str, *, timeout_s: float = JOIN_S) -> list[str]:
        """Return what every rank says on a topic, in rank order. All ranks call it, once for each topic.

        Raises:
            UserError: ranks did not come within the time, or one of them failed with a user error.
            AnotherRankError: a rank failed otherwise, or is gone.
        """
        keys = [f"{topic}/{rank}" for rank in range(self.num_ranks)]
        with self._talking():
            self._store.set(keys[self.rank], text)
        began, missing = time.monotonic(), list(range(self.num_ranks))
        while missing:
            with self._talking():
                missing = [rank for rank in missing if not self._store.check([keys[rank]])]
                self._failure = self._failure or self._told()
            if self._failure is not None:
                self._acknowledge()
                raise self._failure.as_error()
            waited = time.monotonic() - began
            if waited > timeout_s:
                raise CommonError(
                    f"ranks {_listed(missing)} of {self.num_ranks} did not come within {timeout_s:.0f} s after "
                    f"{self.name}. Start the command on every machine at the same time, look at what it printed there, "
                    f"and see that {address()} can be reached from all of them"
                )
            if missing:
                time.sleep(0.05)
                if waited > PATIENCE_S:
                    self._heed()
                    self._tell_of_waiting(missing)
        with self._talking():
            return [value.decode() for value in self._store.multi_get(keys)]

    def _tell_of_waiting(self, missing: Sequence[int]) -> None:
        """Say once, on rank 0, for whom all wait."""
        if self.rank == 0 and not self._told_of_waiting:
            self._told_of_waiting = True
            sys.stderr.write(f"waiting for rank {_listed(missing)} of {self.num_ranks}\n")
            sys.stderr.flush()

    def meet(self, *, timeout_s: float = JOIN_S) -> None:
        """Wait until every rank is there, and watch for their end from then on.

        Raises:
            UserError: ranks did not come within the time, or one of them failed with a user error.
            AnotherRankError: a rank failed otherwise.
        """
        self._beat()
        self._names = self.exchange("name", self.name, timeout_s=timeout_s)
        now = time.monotonic()
        self._seen, self._looked = [(b"", now)] * self.num_ranks, now
        self._watch = threading.Thread(target=self._run, name="notice-board", daemon=True)
        self._watch.start()

    def name_of(self, rank: int) -> str:
        """Return another rank's name for people, after `meet`."""
        return self._names[rank]

    def leave(self) -> None:
        """Stop watching and being watched, at an orderly end or after a failure; safe to call twice.

        Whoever hosts the store stays until the others have left it; after a failure rank 0 does, because its launcher
        may host it, but not for those that are gone.
        """
        if self._ended.is_set():
            return
        self._ended.set()
        if self._watch is not None:
            self._watch.join(STORE_TIMEOUT.total_seconds())
        self._ask(lambda: self._store.set(_beat_key(self.rank), _LEFT), None)
        stays = self._hosts or (self.rank == 0 and self._failure is not None)
        end = time.monotonic() + (HEARD_S if self._failure is None else AFTER_FAILURE_S)
        while stays and time.monotonic() < end and not self._ask(self._all_left, True):
            time.sleep(0.05)

    # Failures ---------------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """Tell the others why this rank ends, unless it does because of them: then raise their cause instead."""
        if isinstance(error, RuntimeError) and not isinstance(error, RunFailureError):
            self._wait_for_cause()
        own = Failure(
            self.rank,
            str(error) if isinstance(error, CommonError) else f"{self.name}: {in_words(error)}",
            is_user_error=isinstance(error, UserError),
            is_common=isinstance(error, CommonError),
        )
        first = self._failure or self._post(own)
        self._failure = first
        if first.rank == self.rank or isinstance(error, AnotherRankError | SystemExit | KeyboardInterrupt):
            self._wait_until_heard()
            report_to_launcher(first)
            return
        self._acknowledge()
        report_to_launcher(first)
        raise first.as_error() from error

    def _wait_for_cause(self) -> None:
        """Wait a moment for the reason of a failed collective: another rank's word, or its silence.

        The moment counts this rank's own beats, because a busy machine that delays them delays its looks at the others.
        """
        if self._watch is None or self._ended.is_set():
            return
        beats = GONE_BEATS + 3
        last, end = self._beats + beats, time.monotonic() + LONGEST_DELAY * beats * self._beat_s
        while self._failure is None and self._beats < last and time.monotonic() < end:
            time.sleep(self._beat_s / 10)
            silent = [rank for rank in range(self.num_ranks) if self._silence(rank) > GONE_BEATS * self._beat_s]
            others = [rank for rank in silent if rank != self.rank]
            if others:
                self._failure = self._post(self._gone(others[0]))

    def _gone(self, rank: int) -> Failure:
        return Failure(
            rank,
            f"{self._names[rank]} is gone without a word: it was killed (out of memory, a batch system), or its "
            f"machine is gone. Look at what its launcher printed, and at logs/rank_{rank} in its run folder",
            is_user_error=False,
        )

    def _post(self, failure: Failure) -> Failure:
        """Write a failure unless another rank was first; return the first."""
        text = failure.to_text()
        return self._ask(lambda: Failure.from_text(self._store.compare_set("failure", "", text)), failure)

    def _told(self) -> Failure | None:
        return Failure.from_text(self._store.get("failure")) if self._store.check(["failure"]) else None

    def _acknowledge(self) -> None:
        self._ask(lambda: self._store.set(f"heard/{self.rank}", ""), None)

    def _wait_until_heard(self) -> None:
        """Stay until every rank that is alive knows of the failure: the store may end with this process."""
        self._acknowledge()
        end = time.monotonic() + HEARD_S
        while time.monotonic() < end and not self._ask(self._all_heard, True):
            time.sleep(0.05)

    def _all_heard(self) -> bool:
        longest = GONE_BEATS * self._beat_s
        alive = [rank for rank in range(self.num_ranks) if not self._seen or self._silence(rank) <= longest]
        return all(self._store.check([f"heard/{rank}"]) or self._has_left(rank) for rank in alive)

    # Signs of life ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Thread: give signs of life, look at those of the others, and see to the end after a failure."""
        while not self._ended.wait(self._beat_s):
            try:
                with self._lock:
                    self._beat()
                    self._look()
                    self._failure = self._failure or self._told()
            except RuntimeError as error:
                logger.info("the store of the ranks does not answer: %s", error)
                self._is_lost = True
                self._failure = Failure(
                    0,
                    f"{self._names[0]} is gone, or its launcher is: {address()} no longer answers {self.name}. "
                    "Look at what was printed there",
                    is_user_error=False,
                )
            if self._failure is not None:
                self._acknowledge()
                self._see_to_the_end(self._failure)
                return

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(_beat_key(self.rank), str(self._beats))

    def _look(self) -> None:
        """Note new signs of life; a rank without one for too long has failed.

        A pause of this process itself (a starved or suspended machine) is not counted as silence of the others.
        """
        now = time.monotonic()
        pause = max(0.0, now - self._looked - 2 * self._beat_s)
        self._seen = [(value, when + pause) for value, when in self._seen]
        self._looked = now
        for rank, value in enumerate(self._store.multi_get([_beat_key(rank) for rank in range(self.num_ranks)])):
            if value != self._seen[rank][0]:
                self._seen[rank] = (value, now)
            if value == _LEFT.encode():
                self._seen[rank] = (value, now)
            elif self._silence(rank) > self._silent_s and self._failure is None:
                gone = self._gone(rank)
                self._failure = Failure.from_text(self._store.compare_set("failure", "", gone.to_text()))

    def _silence(self, rank: int) -> float:
        """Return the seconds between a rank's newest sign of life and this rank's newest look."""
        return self._looked - self._seen[rank][1]

    def _see_to_the_end(self, failure: Failure) -> None:
        """End this process if its main thread does not, because it waits in a collective for a rank that is gone."""
        end = time.monotonic() + self._grace_s
        while not self._ended.wait(self._beat_s):
            if time.monotonic() > end:
                sys.stderr.write(f"error: {failure.cause}\n")
                sys.stderr.flush()
                report_to_launcher(failure)
                with suppress(OSError):
                    self.at_forced_end(failure.cause)
                os._exit(1)
            self._ask(self._beat, None)

    def _ask(self, action: Callable[[], Answer], otherwise: Answer) -> Answer:
        """Use the store while it answers."""
        if self._is_lost:
            return otherwise
        try:
            with self._lock:
                return action()
        except RuntimeError as error:
            logger.info("the store of the ranks does not answer: %s", error)
            self._is_lost = True
            return otherwise

    def _has_left(self, rank: int) -> bool:
        key = _beat_key(rank)
        return self._store.check([key]) and self._store.get(key) == _LEFT.encode()

    def _all_left(self) -> bool:
        return all(self._has_left(rank) for rank in range(self.num_ranks))

    @property
    def _hosts(self) -> bool:
        return self.rank == 0 and not uses_agent_store()

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Use the store; if it is gone, so is rank 0.

        Raises:
            AnotherRankError: the store does not answer.
        """
        try:
            with self._lock:
                yield
        except RuntimeError as error:
            if isinstance(error, RunFailureError):
                raise
            self._is_lost = True
            raise AnotherRankError(
                f"rank 0 or its launcher is gone: {address()} no longer answers {self.name}"
            ) from error


def _beat_key(rank: int) -> str:
    return f"beat/{rank}"


def _listed(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return f"{shown} and {len(ranks) - 8} more" if len(ranks) > 8 else shown


def _end_for_certain(grace_s: float) -> None:
    """Have the kernel end this process if its clean-up hangs: communicators of a GPU wait for ranks that are gone."""
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(max(1, round(grace_s)))
