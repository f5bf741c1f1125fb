from __future__ import annotations

import mmap
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event

import pytest
import torch

from vla_rl.ipc import transfers
from vla_rl.ipc.mailbox import MailboxHandle, WeightMailbox

LAYOUT = {"lora": ((4, 3), torch.float32), "rows": ((5,), torch.bfloat16)}
LARGE = {f"layer{i}": ((64, 512), torch.float32) for i in range(4)}

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
    ),
]


def constant(layout, value: float, device: str = "cpu") -> dict[str, torch.Tensor]:
    return {name: torch.full(shape, value, dtype=dtype, device=device) for name, (shape, dtype) in layout.items()}


def publish_until_told(handle: MailboxHandle, stop: Event) -> None:
    torch.set_num_threads(1)
    mailbox = WeightMailbox.attach(handle)
    version = 0
    while not stop.is_set():
        mailbox.publish(version, constant(LARGE, float(version)))
        version += 1


def test_nothing_is_there_before_the_first_publish():
    with WeightMailbox.create(LAYOUT) as mailbox:
        assert mailbox.latest_version() == -1
        with pytest.raises(ValueError, match="before anything was published"):
            mailbox.read(constant(LAYOUT, 0.0))


@pytest.mark.parametrize("device", DEVICES)
def test_the_newest_snapshot_is_read_whole(device):
    with WeightMailbox.create(LAYOUT) as mailbox:
        for version in (0, 3, 4, 11):
            mailbox.publish(version, constant(LAYOUT, version + 0.5, device))
            assert mailbox.latest_version() == version
            into = constant(LAYOUT, -1.0, device)
            assert mailbox.read(into) == version
            assert all((tensor == version + 0.5).all() for tensor in into.values())


def test_parameters_that_need_gradients_can_be_published_and_read_into():
    parameter = torch.nn.Parameter(torch.ones(2))
    with WeightMailbox.create({"p": ((2,), torch.float32)}) as mailbox:
        mailbox.publish(0, {"p": parameter})
        other = torch.nn.Parameter(torch.zeros(2))
        mailbox.read({"p": other})
        assert other.tolist() == [1.0, 1.0]
        assert other.requires_grad


def test_versions_must_grow():
    with WeightMailbox.create(LAYOUT) as mailbox:
        mailbox.publish(5, constant(LAYOUT, 0.0))
        for version in (5, 4):
            with pytest.raises(ValueError, match=f"above 5, got {version}"):
                mailbox.publish(version, constant(LAYOUT, 0.0))


def test_a_different_layout_is_refused_by_name():
    with WeightMailbox.create(LAYOUT) as mailbox:
        with pytest.raises(ValueError, match=r"published.*missing \['rows'\], unknown \['head'\]"):
            mailbox.publish(0, {"lora": torch.zeros(4, 3), "head": torch.zeros(1)})
        mailbox.publish(0, constant(LAYOUT, 0.0))
        wrong_shape = constant(LAYOUT, 0.0) | {"lora": torch.zeros(3, 4)}
        with pytest.raises(ValueError, match=r"'lora' read into must be \(4, 3\) torch.float32, got \(3, 4\)"):
            mailbox.read(wrong_shape)
        wrong_dtype = constant(LAYOUT, 0.0) | {"rows": torch.zeros(5)}
        with pytest.raises(ValueError, match=r"'rows' read into must be \(5,\) torch.bfloat16, got .* torch.float32"):
            mailbox.read(wrong_dtype)


class PublishesWhileCopied:
    """Stands for a destination tensor whose copy is so slow that the writer publishes `times` snapshots meanwhile."""

    shape, dtype, device = (2,), torch.float32, torch.device("cpu")

    def __init__(self, mailbox: WeightMailbox, times: int, *, always: bool = False) -> None:
        self.mailbox, self.times, self.always = mailbox, times, always
        self.copies: list[list[float]] = []

    def copy_(self, view: torch.Tensor) -> None:
        self.copies.append(view.tolist())
        if self.always or len(self.copies) == 1:
            for _ in range(self.times):
                version = self.mailbox.latest_version() + 1
                self.mailbox.publish(version, {"p": torch.full((2,), float(version))})


@pytest.mark.parametrize(
    ("publishes", "expected_version", "expected_copies"),
    [(0, 0, [[0.0, 0.0]]), (1, 0, [[0.0, 0.0]]), (2, 2, [[0.0, 0.0], [2.0, 2.0]]), (3, 3, [[0.0, 0.0], [3.0, 3.0]])],
)
def test_a_reader_starts_over_only_when_its_buffer_was_written_again(publishes, expected_version, expected_copies):
    with WeightMailbox.create({"p": ((2,), torch.float32)}) as mailbox:
        mailbox.publish(0, {"p": torch.zeros(2)})
        slow = PublishesWhileCopied(mailbox, publishes)
        assert mailbox.read({"p": slow}) == expected_version
        assert slow.copies == expected_copies


def test_a_reader_that_is_always_overtaken_gives_up_with_the_cause():
    with WeightMailbox.create({"p": ((2,), torch.float32)}) as mailbox:
        mailbox.publish(0, {"p": torch.zeros(2)})
        with pytest.raises(RuntimeError, match=r"100 reads in a row were overtaken.*learner.publish_every"):
            mailbox.read({"p": PublishesWhileCopied(mailbox, 2, always=True)})


class DiesWhileCopied:
    """Stands for a writer killed in the middle of a publish: its buffer is half written and stays announced."""

    shape, dtype, device = (2,), torch.float32, torch.device("cpu")

    def detach(self) -> torch.Tensor:
        raise InterruptedError


def test_a_writer_that_died_while_publishing_leaves_the_last_snapshot():
    with WeightMailbox.create({"p": ((2,), torch.float32)}) as mailbox:
        mailbox.publish(0, {"p": torch.zeros(2)})
        with pytest.raises(InterruptedError):
            mailbox.publish(1, {"p": DiesWhileCopied()})
        into = {"p": torch.ones(2)}
        assert mailbox.read(into) == 0
        assert into["p"].tolist() == [0.0, 0.0]


def test_an_attempt_that_failed_half_way_does_not_harm_the_next():
    """Sequence numbers are odd while a buffer is written: counted on from an odd one they would say the contrary."""
    with WeightMailbox.create({"p": ((2,), torch.float32)}) as mailbox:
        mailbox.publish(0, {"p": torch.zeros(2)})
        with pytest.raises(InterruptedError):
            mailbox.publish(1, {"p": DiesWhileCopied()})
        mailbox.publish(1, {"p": torch.ones(2)})
        into = {"p": torch.full((2,), -1.0)}
        assert mailbox.read(into) == 1
        assert into["p"].tolist() == [1.0, 1.0]


class StaleOnce:
    """Stands for a reader that was suspended between asking for the latest buffer and looking at it."""

    def __init__(self, stale: int, now: int) -> None:
        self.answers = [stale, now]

    def __getitem__(self, _index: int) -> int:
        return self.answers.pop(0)


def test_a_buffer_that_is_being_written_is_not_read(monkeypatch):
    with WeightMailbox.create({"a": ((1,), torch.float32), "b": ((2,), torch.float32)}) as mailbox:
        for version in (0, 1):
            mailbox.publish(version, {"a": torch.full((1,), float(version)), "b": torch.full((2,), float(version))})
        with pytest.raises(InterruptedError):
            mailbox.publish(2, {"a": torch.full((1,), 2.0), "b": DiesWhileCopied()})
        latest = int(mailbox._latest[0])
        monkeypatch.setattr(mailbox, "_latest", StaleOnce(1 - latest, latest))
        into = {"a": torch.zeros(1), "b": torch.zeros(2)}
        assert mailbox.read(into) == 1
        assert (into["a"].tolist(), into["b"].tolist()) == ([1.0], [1.0, 1.0])


class Delayed:
    """Stands for copies by a GPU: a copy is made when it is waited for, or never. `at_wait` is called before."""

    def __init__(self, at_wait: Callable[[], None]) -> None:
        self.pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.at_wait = at_wait

    def start(self, pairs) -> None:
        self.pairs += pairs

    def wait(self) -> None:
        self.at_wait()
        for target, source in self.pairs:
            target.copy_(source)
        self.pairs = []

    def close(self) -> None:
        self.pairs = []


def test_a_version_is_announced_after_its_copies_are_complete():
    """A wait that is left out shows the reader old content under the new version; one that comes late is seen here."""
    seen = []
    with WeightMailbox.create(LAYOUT) as writer, WeightMailbox.attach(writer.handle) as reader:
        writer.publish(0, constant(LAYOUT, 0.0))
        filled = 1 - int(reader._latest[0])
        writer._transfers = Delayed(lambda: seen.append((reader.latest_version(), int(reader._sequence[filled]) % 2)))
        writer.publish(1, constant(LAYOUT, 1.0))
        into = constant(LAYOUT, -1.0)
        assert reader.read(into) == 1
        assert all((tensor == 1.0).all() for tensor in into.values())
        assert seen == [(0, 1)]


def test_a_reader_looks_at_the_sequence_number_after_its_copies_are_complete():
    """Its buffer is written again between the start of its copies and their end: what they give is thrown away."""
    with WeightMailbox.create(LAYOUT) as writer, WeightMailbox.attach(writer.handle) as reader:
        writer.publish(0, constant(LAYOUT, 0.0))
        to_come = [1, 2]

        def publish_twice_once() -> None:
            while to_come:
                version = to_come.pop(0)
                writer.publish(version, constant(LAYOUT, float(version)))

        reader._transfers = Delayed(publish_twice_once)
        into = constant(LAYOUT, -1.0)
        assert reader.read(into) == 2
        assert all((tensor == 2.0).all() for tensor in into.values())


@pytest.mark.parametrize("kind", ["plain", "delayed"])
def test_whatever_copies_the_bits_stay(kind):
    torch.manual_seed(0)
    source = {"p": torch.randn(33), "q": torch.randn(5, 7).bfloat16(), "n": torch.tensor([float("nan"), -0.0])}
    layout = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in source.items()}
    with WeightMailbox.create(layout) as mailbox:
        if kind == "delayed":
            mailbox._transfers = Delayed(lambda: None)
        mailbox.publish(0, source)
        into = {name: torch.zeros_like(tensor) for name, tensor in source.items()}
        mailbox.read(into)
        for name, tensor in source.items():
            assert torch.equal(into[name].view(torch.uint8), tensor.view(torch.uint8)), name


def test_what_is_pinned_is_whole_pages_around_both_buffers():
    with WeightMailbox.create(LARGE) as mailbox:
        address, num_bytes = mailbox._pages()
        assert address % mmap.PAGESIZE == 0 == num_bytes % mmap.PAGESIZE
        views = [view for buffer in mailbox._buffers for view in buffer.values()]
        assert len(views) == 8
        assert all(
            address <= view.data_ptr() and view.data_ptr() + view.nbytes <= address + num_bytes for view in views
        )
        assert num_bytes < sum(view.nbytes for view in views) + 3 * mmap.PAGESIZE


def test_memory_that_cannot_be_pinned_is_copied_plainly_and_that_is_said_once(caplog, monkeypatch):
    def refuse(*_arguments: object) -> None:
        raise RuntimeError("CUDA error: operation not supported.\nCUDA kernel errors might be asynchronously reported")

    monkeypatch.setattr(transfers, "PinnedTransfers", refuse)
    found = transfers.transfers_for(torch.device("cuda:0"), 0, 4096)
    assert isinstance(found, transfers.PlainTransfers)
    (record,) = caplog.records
    assert record.getMessage() == (
        "publishing weights takes longer than it needs: their shared memory cannot be pinned for cuda:0: "
        "CUDA error: operation not supported"
    )


def test_a_reader_racing_a_fast_writer_never_sees_a_torn_snapshot():
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    into = constant(LARGE, -1.0)
    with WeightMailbox.create(LARGE) as mailbox:
        writer = context.Process(target=publish_until_told, args=(mailbox.handle, stop))
        writer.start()
        versions = []
        try:
            deadline = time.monotonic() + 60
            while mailbox.latest_version() < 0 and time.monotonic() < deadline:
                time.sleep(0.01)
            # On a busy machine one of the two may sleep through the other's work: go on until they really race.
            while (len(versions) < 200 or len(set(versions)) <= 10) and time.monotonic() < deadline:
                version = mailbox.read(into)
                assert {float(t.min()) for t in into.values()} == {float(version)}
                assert {float(t.max()) for t in into.values()} == {float(version)}
                versions.append(version)
        finally:
            stop.set()
            writer.join(30)
        assert writer.exitcode == 0
        assert len(versions) >= 200
        assert versions == sorted(versions)
        assert len(set(versions)) > 10  # the race was real
