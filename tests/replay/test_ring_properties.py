from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from replay_helpers import add_decision, assert_consistent, make_ring, signatures, write_episode

from vla_rl.replay.sampler import SegmentSampler

SEGMENT = 3
OPERATIONS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(1, 6), st.sampled_from(["commit", "commit", "abandon", "die", "refresh"])),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(operations=OPERATIONS)
def test_exactly_the_segments_whose_rows_are_all_still_in_memory_are_offered(operations):
    """Signatures are unique, so the memory itself says which rows are still there."""
    with make_ring(num_envs=2, capacity=32) as ring:
        writers = [ring.writer(0), ring.writer(1)]
        sampler = SegmentSampler(ring, segment_length=SEGMENT, seed=0)
        committed: list[tuple[int, int]] = []  # first signature, decisions
        signature = 1
        for env, length, operation in operations:
            if operation == "refresh":
                sampler.refresh()
            elif operation == "commit":
                write_episode(writers[env], signature, length)
                committed.append((signature, length))
            else:
                writers[env].begin(0)
                for index in range(length):
                    add_decision(writers[env], signature + index)
                if operation == "abandon":
                    writers[env].abandon()
                else:
                    writers[env] = ring.writer(env)
            signature += length + 1

        in_memory = set(ring.row_array("state")[:, 0].tolist())
        expected = set()
        for first, length in committed:
            for start in range(first, first + length, SEGMENT):
                stop = min(start + SEGMENT, first + length)
                if all(row in in_memory for row in range(start, stop + 1)):
                    expected.add((start, stop - start))

        sampler.refresh()
        assert offered(sampler) == expected
        assert sampler.total_committed == sum(length for _, length in committed)
        assert sampler.num_decisions == sum(length for _, length in expected)
        assert sampler.num_decisions >= 1 or not committed


def offered(sampler: SegmentSampler) -> set[tuple[int, int]]:
    found = set()
    while len(found) < sampler.num_segments:
        batch = sampler.sample(64)
        assert_consistent(batch)
        found |= {(segment[0], len(segment)) for segment in signatures(batch)}
    return found
