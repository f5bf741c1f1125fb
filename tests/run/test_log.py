"""Rates and shares of time between two moments of a run, and what its processes used of a GPU."""

import logging

import pytest

from vla_rl.ipc.counters import CellCounters
from vla_rl.policies.devices import PeakMemory
from vla_rl.reporting.catalogue import CATALOGUE
from vla_rl.run.log import changed_ranks
from vla_rl.run.log_file import log_to
from vla_rl.run.performance import Moment, memory_metrics, rates, utilisation_metrics
from vla_rl.run.utilisation import bf16_peak


def test_shares_of_time_are_per_env_worker_and_rates_per_second():
    before = Moment(
        seconds=10.0, env_steps=100, decisions=50, consumed=40, learner_wait=1.0, env_wait=2.0, env_held_back=3.0,
        inference_busy=0.0, batches=10, served=20,
    )  # fmt: skip
    now = Moment(
        seconds=14.0, env_steps=180, decisions=90, consumed=360, learner_wait=2.0, env_wait=4.0, env_held_back=9.0,
        inference_busy=0.0, batches=30, served=60,
    )  # fmt: skip
    assert rates(before, now, num_env_workers=2) == pytest.approx(
        {
            "perf/env_steps_per_s": 20.0,
            "perf/decisions_per_s": 10.0,
            "perf/learner_samples_per_s": 80.0,
            "perf/learner_wait_fraction": 0.25,
            "perf/env_wait_fraction": 0.25,  # 2 s of the 8 s that two workers had
            "perf/env_held_back_fraction": 0.75,
            "perf/inference_batch_size": 2.0,
        }
    )


def test_memory_of_both_processes_stands_beside_the_estimate_in_gib():
    with CellCounters.create(num_env_workers=1) as counters:
        counters.set("inference_peak_allocated", 3 * 2**29)
        counters.set("inference_peak_reserved", 2 * 2**30)
        told = memory_metrics(PeakMemory(40 * 2**30, 45 * 2**30), counters, estimated=50 * 2**30)
        assert memory_metrics(None, counters, estimated=50 * 2**30) == {}  # on a CPU
    assert told == {
        "memory/learner_allocated": 40.0,
        "memory/learner_reserved": 45.0,
        "memory/inference_allocated": 1.5,
        "memory/inference_reserved": 2.0,
        "memory/estimated": 50.0,
    }
    assert all(CATALOGUE[name].reduction == "max" for name in told)


def test_utilisation_counts_the_time_that_is_not_waited_and_is_absent_without_a_peak():
    """400 decisions of 9 TFLOP in the 10 s of 20 that were not waited, of 900 TFLOP/s; 60 of 5 in 2 busy seconds."""
    before = Moment(
        seconds=100.0, env_steps=0, decisions=0, consumed=100, learner_wait=5.0, env_wait=0.0, env_held_back=0.0,
        inference_busy=1.0, batches=0, served=40,
    )  # fmt: skip
    now = Moment(
        seconds=120.0, env_steps=0, decisions=0, consumed=500, learner_wait=15.0, env_wait=0.0, env_held_back=0.0,
        inference_busy=3.0, batches=0, served=100,
    )  # fmt: skip
    told = utilisation_metrics(before, now, update_flops=9e12, inference_flops=5e12, peak=9e14)
    assert told == pytest.approx({"perf/learner_mfu": 0.4, "perf/inference_mfu": 1 / 6})
    assert told.keys() <= CATALOGUE.keys()
    assert utilisation_metrics(before, now, update_flops=9e12, inference_flops=5e12, peak=None) == {}
    assert utilisation_metrics(now, now, update_flops=9e12, inference_flops=5e12, peak=9e14) == {
        "perf/learner_mfu": 0.0,
        "perf/inference_mfu": 0.0,
    }


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA GeForce RTX 4090", 165.0),
    ],
)
def test_peaks_are_those_of_the_data_sheets_without_sparsity(name, teraflops):
    assert bf16_peak(name) == pytest.approx(1e12 * teraflops)


@pytest.mark.parametrize(
    "name",
    [
        "Some Accelerator 9000",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
    ],
)
def test_an_unknown_card_and_a_part_of_one_have_no_peak(name):
    assert bf16_peak(name) is None


def test_the_run_s_log_holds_information_too_and_leaves_the_logger_as_it_was(tmp_path):
    logger = logging.getLogger("vla_rl.run.training")
    before = logging.getLogger("vla_rl").level
    with log_to(tmp_path / "learner.log"):
        logger.info("layers compiled in %.0f s", 12.0)
    logger.info("after the run")
    assert "INFO layers compiled in 12 s" in (tmp_path / "learner.log").read_text()
    assert "after the run" not in (tmp_path / "learner.log").read_text()
    assert logging.getLogger("vla_rl").level == before


def test_a_resumed_run_says_what_another_number_of_ranks_changes():
    settings = {"segments": 8, "min_decisions": 100}
    assert [*changed_ranks(before=2, now=2, with_replay=2, **settings)] == []
    fewer = [*changed_ranks(before=4, now=2, with_replay=2, **settings)]
    assert len(fewer) == 2
    assert fewer[0].startswith(
        "the checkpoint has 4 ranks, the run continues with 2: an update now takes 16 segments instead of 32"
    )
    assert fewer[1] == "the replay of rank 2, 3 is left out"
    more = [*changed_ranks(before=2, now=3, with_replay=2, **settings)]
    assert more[0].startswith(
        "the checkpoint has 2 ranks, the run continues with 3: an update now takes 24 segments instead of 16"
    )
    assert more[1].startswith("1 of 3 ranks have no replay in the checkpoint")
    assert "until each holds 100 decisions" in more[1]


def test_ranks_whose_replay_lies_on_another_machine_are_told_although_their_number_is_the_same():
    (told,) = changed_ranks(before=2, now=2, with_replay=1, segments=8, min_decisions=100)
    assert told.startswith("1 of 2 ranks have no replay")


def test_a_run_without_replay_in_its_checkpoints_says_nothing_of_it():
    told = [*changed_ranks(before=2, now=1, with_replay=None, segments=8, min_decisions=100)]
    assert len(told) == 1
    assert "replay" not in told[0]
