"""Boards of several ranks in one process: each rank is a thread with its own client of one store."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore

from vla_rl.learner.notice_board import NoticeBoard

BEAT_S = 0.02


def together(*ranks: Callable[[NoticeBoard], Any], **settings: float) -> list[Any]:
    """Run one function for each rank; returns what each returned or raised, in rank order."""
    timeout = timedelta(seconds=20)
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timeout)
    results: list[Any] = [None] * len(ranks)

    def run(rank: int) -> None:
        client = TCPStore("127.0.0.1", server.port, is_master=False, wait_for_workers=False, timeout=timeout)
        try:
            with NoticeBoard(
                PrefixStore("test", client),
                rank=rank,
                num_ranks=len(ranks),
                name=f"rank {rank} (host{rank})",
                beat_s=settings.get("beat_s", BEAT_S),
                silent_s=settings.get("silent_s", 20.0),
                grace_s=settings.get("grace_s", 60.0),
            ) as board:
                results[rank] = ranks[rank](board)
        except BaseException as error:  # noqa: BLE001 - what a rank ends with is what is looked at
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    return results
