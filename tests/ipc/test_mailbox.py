from __future__ import annotations

import multiprocessing
import time
from multiprocessing.synchronize import Event

import pytest
import torch

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

    shape, dtype = (2,), torch.float32

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

    shape, dtype = (2,), torch.float32

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
