"""Process of the inference worker: gathers waiting slots into batches, decides, replies.

    loop:  wait for requests (bounded) ─► adopt newer weights, if any ─► one forward pass ─► reply

It waits only for requests, never for the learner: a published snapshot is adopted between two batches.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from vla_rl.ipc.counters import CellCounters
from vla_rl.ipc.cuda_memory import SharingError
from vla_rl.ipc.mailbox import MailboxHandle, WeightMailbox
from vla_rl.ipc.shared_arrays import SharedArrays, SharedArraysHandle
from vla_rl.ipc.shared_weights import NotShared, SharedWeights, SharedWeightsHandle
from vla_rl.ipc.slots import ExchangeSlots
from vla_rl.policies.devices import use_device
from vla_rl.policies.parameters import assign_parameters
from vla_rl.types import PolicyBuilder
from vla_rl.workers.batching import Batcher
from vla_rl.workers.compiled import CompiledForward
from vla_rl.workers.inference_server import InferenceServer
from vla_rl.workers.messages import receive_slots, send_slots
from vla_rl.workers.process import enter_child, leave_child

WARM_UP_S = 3600.0  # for compiling every batch size of a large network
POLL_S = 0.25  # heartbeat period while there are no requests

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """Settings of the inference worker. Picklable."""

    build: PolicyBuilder
    device: str
    bf16: bool
    greedy: bool
    seed: int | None  # None: each decision has its own, see `InferenceServer`
    max_batch: int
    max_wait_s: float
    log_path: Path
    threads: int
    compile: bool = False  # the forward pass, with CUDA graphs on a GPU
    must_share: bool = (
        False  # require the learner's frozen tensors; otherwise this process loads its own if they cannot be mapped
    )


@dataclass(frozen=True, slots=True)
class WeightLinks:
    """Handles of the learner's weights, for a process that decides. Picklable."""

    mailbox: MailboxHandle
    frozen: SharedWeightsHandle | NotShared | None  # the learner's frozen tensors; None: nothing is frozen


@dataclass(frozen=True, slots=True)
class InferenceLinks:
    """Objects that the inference worker shares with the rest of its cell. Picklable."""

    slots: SharedArraysHandle
    counters: SharedArraysHandle
    weights: WeightLinks
    env_workers: Sequence[Connection]


def inference_worker_main(settings: InferenceSettings, links: InferenceLinks) -> None:
    """Entry point of the spawned process; returns when the stop flag is set."""
    enter_child("inference_worker", settings.log_path, threads=settings.threads)
    use_device(settings.device)
    with (
        SharedArrays.attach(links.slots) as arrays,
        CellCounters.attach(links.counters) as counters,
        attached_server(settings, links.weights, ExchangeSlots.view(arrays), counters) as server,
    ):
        while not server.adopt() and not counters.stop_requested:
            counters.beat("inference_heartbeat")
            time.sleep(0.01)
        with beating(counters, at_most_s=WARM_UP_S):
            server.warm_up()
        report(server, counters)
        _serve_until_stopped(settings, links.env_workers, server, counters)
    log.info("done after %d batches, %d decisions", server.batches, server.decisions)
    leave_child()


@contextmanager
def attached_server(
    settings: InferenceSettings, weights: WeightLinks, slots: ExchangeSlots, counters: CellCounters, index: int = 0
) -> Iterator[InferenceServer]:
    """Make the cell's server of that index in this process, around the learner's weights, which are mapped meanwhile.

    Raises:
        SharingError: see `map_frozen`.
    """
    torch.set_num_threads(max(1, settings.threads))
    with WeightMailbox.attach(weights.mailbox) as mailbox:
        frozen = map_frozen(weights.frozen, must_share=settings.must_share)
        counters.set("inference_own_frozen", isinstance(frozen, NotShared) and not frozen.asked_for, index)
        server = make_server(settings, mailbox, slots, tensors_of(frozen))
        log.info("policy ready on %s, waiting for weights", settings.device)
        yield server


def map_frozen(handle: SharedWeightsHandle | NotShared | None, *, must_share: bool) -> SharedWeights | NotShared | None:
    """Map the learner's frozen tensors, or return why not: then this process loads its own, and logs it.

    Raises:
        SharingError: they cannot be mapped here, and `must_share`.
    """
    if isinstance(handle, SharedWeightsHandle):
        try:
            return SharedWeights.attach(handle)
        except SharingError as error:
            if must_share:
                raise
            handle = NotShared(str(error), asked_for=False)
    if isinstance(handle, NotShared):
        level = logging.INFO if handle.asked_for else logging.WARNING
        log.log(level, "the frozen weights are loaded a second time: %s", handle.reason)
    return handle


def tensors_of(weights: SharedWeights | NotShared | None) -> Mapping[str, torch.Tensor] | None:
    """Frozen tensors by name, for `make_server`: none, or None where they are not shared."""
    if isinstance(weights, NotShared):
        return None
    return {} if weights is None else weights.tensors()


def make_server(
    settings: InferenceSettings, mailbox: WeightMailbox, slots: ExchangeSlots, frozen: Mapping[str, torch.Tensor] | None
) -> InferenceServer:
    """Build the policy around mapped frozen tensors and empty trainable ones.

    No frozen weight is allocated here: the module is built on the meta device and its frozen parameters become the
    given tensors, which are the learner's memory. The mailbox fills the trainable ones. If `frozen` is None, the policy
    is built in full, as a copy of the learner's.
    """
    policy = settings.build(device=settings.device, empty=frozen is not None)
    trainable: dict[str, torch.Tensor]
    if frozen is None:
        trainable = {name: p.detach() for name, p in policy.named_parameters() if p.requires_grad}
    else:
        trainable = {
            name: torch.empty(parameter.shape, dtype=parameter.dtype, device=settings.device)
            for name, parameter in policy.named_parameters()
            if name not in frozen
        }
        assign_parameters(policy, {**frozen, **trainable})
    policy.eval()
    return InferenceServer(
        policy=policy,
        trainable=trainable,
        mailbox=mailbox,
        slots=slots,
        device=settings.device,
        greedy=settings.greedy,
        seed=settings.seed,
        max_batch=settings.max_batch,
        bf16=settings.bf16,
        compiled=CompiledForward(policy, max_batch=settings.max_batch) if settings.compile else None,
    )


@contextmanager
def beating(counters: CellCounters, *, at_most_s: float) -> Iterator[None]:
    """Send heartbeats from a thread while the main one is inside a long call, for a limited time."""
    done = threading.Event()

    def beat() -> None:
        deadline = time.monotonic() + at_most_s
        while not done.wait(POLL_S) and time.monotonic() < deadline:
            counters.beat("inference_heartbeat")

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def report(server: InferenceServer, counters: CellCounters, index: int = 0) -> None:
    """Write the counts of the cell's server of that index to its counters, for supervisor and metrics."""
    counters.set("inference_policy_version", server.version, index)
    counters.set("inference_batches", server.batches, index)
    counters.set("inference_decisions", server.decisions, index)
    counters.set("inference_busy_seconds", server.busy_seconds, index)
    counters.set("inference_adopt_seconds", server.adopt_seconds, index)
    if (peak := server.peak_memory) is not None:
        counters.set("inference_peak_allocated", peak.allocated, index)
        counters.set("inference_peak_reserved", peak.reserved, index)


def _serve_until_stopped(
    settings: InferenceSettings, connections: Sequence[Connection], server: InferenceServer, counters: CellCounters
) -> None:
    batcher = Batcher(settings.max_batch, settings.max_wait_s)
    worker_of = {id(connection): worker for worker, connection in enumerate(connections)}
    while not counters.stop_requested:
        counters.beat("inference_heartbeat")
        batcher.open_slots = int(counters.total("env_worker_open_slots"))
        seconds_left = batcher.seconds_left(time.monotonic())
        ready = wait(list(connections), timeout=POLL_S if seconds_left is None else seconds_left)
        for connection in ready:
            assert isinstance(connection, Connection)
            incarnation, slots = receive_slots(connection)
            batcher.add(worker_of[id(connection)], incarnation, slots, time.monotonic())
        if batcher.seconds_left(time.monotonic()) == 0.0:
            server.adopt()
            _answer(batcher.take(time.monotonic()), connections, server)
            report(server, counters)


def _answer(batch: Sequence[tuple[int, int, int]], connections: Sequence[Connection], server: InferenceServer) -> None:
    """Decide for a batch and tell each worker which of its slots are answered."""
    server.serve([slot for _, _, slot in batch])
    replies: dict[tuple[int, int], list[int]] = defaultdict(list)
    for worker, incarnation, slot in batch:
        replies[worker, incarnation].append(slot)
    for (worker, incarnation), slots in replies.items():
        send_slots(connections[worker], incarnation, slots)
