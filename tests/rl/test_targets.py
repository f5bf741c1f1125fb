"""GAE and V-trace: hand vectors, and a slow reference made of the definitions' explicit sums over time."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.rl.targets import gae, vtrace

REWARDS, VALUES, NEXT_VALUES = [1.0, 0.0, 2.0], [0.5, 1.0, -0.5], [1.0, -0.5, 4.0]
NONE, LAST = [False] * 3, [False, False, True]
LOG_RATIO = [math.log(2.0), math.log(0.5), 0.0]


def tensors(*lists):
    return tuple(torch.tensor(x, dtype=torch.bool if isinstance(x[0], bool) else torch.float64) for x in lists)


def hand_segment(terminated, truncated):
    return tensors(REWARDS, VALUES, NEXT_VALUES, terminated, truncated)


@dataclass(frozen=True)
class Segment:
    """Plain lists of one segment; inside an episode the successor's value is the next element's value."""

    rewards: list[float]
    values: list[float]
    next_values: list[float]
    terminated: list[bool]
    truncated: list[bool]
    log_ratio: list[float]

    @property
    def arguments(self):
        return tensors(self.rewards, self.values, self.next_values, self.terminated, self.truncated)

    def last_of_episode(self, t):
        """Index of the last element of t's episode within the segment."""
        ends = [k for k in range(t, len(self.rewards)) if self.terminated[k] or self.truncated[k]]
        return min([*ends, len(self.rewards) - 1])

    def successor_value(self, t):
        return 0.0 if self.terminated[t] else self.next_values[t]


@st.composite
def segments(draw, max_length=7):
    size = draw(st.integers(1, max_length))
    numbers = st.lists(st.floats(-3.0, 3.0, width=32), min_size=size, max_size=size)
    flags = st.lists(st.sampled_from([False, False, False, True]), min_size=size, max_size=size)
    values, ends, terminated, truncated = draw(numbers), draw(numbers), draw(flags), draw(flags)
    inside = [not (terminated[t] or truncated[t]) and t < size - 1 for t in range(size)]
    next_values = [values[t + 1] if inside[t] else ends[t] for t in range(size)]
    return Segment(draw(numbers), values, next_values, terminated, truncated, draw(numbers))


def slow_gae(segment, discount, lambda_):
    """A_t = Σ_n w_n G_t^(n) − V(s_t): the λ-weighted mean of all n-step returns, each an explicit sum."""
    advantages = []
    for t in range(len(segment.rewards)):
        steps = segment.last_of_episode(t) - t + 1
        returns = [
            sum(discount**k * segment.rewards[t + k] for k in range(n))
            + discount**n * segment.successor_value(t + n - 1)
            for n in range(1, steps + 1)
        ]
        weights = [(1 - lambda_) * lambda_ ** (n - 1) for n in range(1, steps)] + [lambda_ ** (steps - 1)]
        advantages.append(sum(w * g for w, g in zip(weights, returns, strict=True)) - segment.values[t])
    return advantages


def slow_vtrace(segment, discount, lambda_, rho_bar, c_bar):
    """v_s = V(s_s) + Σ_t γ^(t−s) (Π_{i<t} c_i) ρ_t δ_t (arXiv 1802.01561, equation 1), and A_s from v_{s+1}."""
    ratios = [math.exp(x) for x in segment.log_ratio]

    def target(s):
        correction = 0.0
        for t in range(s, segment.last_of_episode(s) + 1):
            delta = segment.rewards[t] + discount * segment.successor_value(t) - segment.values[t]
            trace = math.prod(lambda_ * min(c_bar, ratios[i]) for i in range(s, t))
            correction += discount ** (t - s) * trace * min(rho_bar, ratios[t]) * delta
        return segment.values[s] + correction

    def advantage(s):
        future = segment.successor_value(s)
        if segment.last_of_episode(s) != s:
            future = (1 - lambda_) * segment.values[s + 1] + lambda_ * target(s + 1)
        return segment.rewards[s] + discount * future - segment.values[s]

    times = range(len(segment.rewards))
    return [target(s) for s in times], [advantage(s) for s in times]


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [
        (LAST, NONE, [1.25375, -0.325, 2.5]),
        (NONE, LAST, [1.98275, 1.295, 6.1]),
        (NONE, NONE, [1.98275, 1.295, 6.1]),  # an unfinished segment bootstraps like a truncated one
        (LAST, LAST, [1.25375, -0.325, 2.5]),  # termination wins
    ],
)
def test_gae_hand_vector(terminated, truncated, expected):
    advantages = gae(*hand_segment(terminated, truncated), discount=0.9, gae_lambda=0.5)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("terminated", "truncated", "value_targets", "advantages"),
    [
        (LAST, NONE, [2.26, 1.4, 2.0], [1.76, 0.8, 2.5]),
        (NONE, LAST, [3.718, 3.02, 5.6], [3.218, 4.04, 6.1]),
        (NONE, NONE, [3.718, 3.02, 5.6], [3.218, 4.04, 6.1]),
        (LAST, LAST, [2.26, 1.4, 2.0], [1.76, 0.8, 2.5]),
    ],
)
def test_vtrace_hand_vector(terminated, truncated, value_targets, advantages):
    targets = vtrace(*hand_segment(terminated, truncated), *tensors(LOG_RATIO), discount=0.9)
    assert targets.value_targets.tolist() == pytest.approx(value_targets, abs=1e-12)
    assert targets.advantages.tolist() == pytest.approx(advantages, abs=1e-12)


# A time limit reached by the second of three steps; the third belongs to the next episode, which the segment cuts off.
#
#            GAE λ = 0.5                           V-trace λ = 1, ρ = [2, 0.5, 1]: cut to [1, 0.5, 1]
# end        δ_1 = 0 − 1 = −1                      d_1 = 0.5 · −1 = −0.5,        v_1 = 0.5
#            A_0 = 1.4 + 0.45 · −1 = 0.95          d_0 = 1.4 + 0.9 · −0.5 = 0.95,        v_0 = 1.45
# bootstrap  δ_1 = 0.9 · −0.5 − 1 = −1.45          d_1 = 0.5 · −1.45 = −0.725,  v_1 = 0.275
#            A_0 = 1.4 + 0.45 · −1.45 = 0.7475     d_0 = 1.4 + 0.9 · −0.725 = 0.7475,    v_0 = 1.2475
# both       δ_2 = 2 + 0.9 · 4 + 0.5 = 6.1         v_2 = −0.5 + 6.1 = 5.6
INSIDE = [False, True, False]


@pytest.mark.parametrize(
    ("truncated", "time_limit", "expected"),
    [
        (INSIDE, "end", [0.95, -1.0, 6.1]),
        (INSIDE, "bootstrap", [0.7475, -1.45, 6.1]),
        (LAST, "end", [1.25375, -0.325, 2.5]),  # like a termination
        (LAST, "bootstrap", [1.98275, 1.295, 6.1]),
        (NONE, "end", [1.98275, 1.295, 6.1]),  # cut in mid-episode: bootstrapped, whatever the time limit is
    ],
)
def test_gae_at_a_time_limit_by_hand(truncated, time_limit, expected):
    advantages = gae(*hand_segment(NONE, truncated), discount=0.9, gae_lambda=0.5, time_limit=time_limit)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("truncated", "time_limit", "value_targets", "advantages"),
    [
        (INSIDE, "end", [1.45, 0.5, 5.6], [0.95, -1.0, 6.1]),
        (INSIDE, "bootstrap", [1.2475, 0.275, 5.6], [0.7475, -1.45, 6.1]),
        (LAST, "end", [2.26, 1.4, 2.0], [1.76, 0.8, 2.5]),
        (LAST, "bootstrap", [3.718, 3.02, 5.6], [3.218, 4.04, 6.1]),
        (NONE, "end", [3.718, 3.02, 5.6], [3.218, 4.04, 6.1]),
    ],
)
def test_vtrace_at_a_time_limit_by_hand(truncated, time_limit, value_targets, advantages):
    segment = hand_segment(NONE, truncated)
    targets = vtrace(*segment, *tensors(LOG_RATIO), discount=0.9, time_limit=time_limit)
    assert targets.value_targets.tolist() == pytest.approx(value_targets, abs=1e-12)
    assert targets.advantages.tolist() == pytest.approx(advantages, abs=1e-12)


@given(segment=segments(), discount=st.floats(0.0, 1.0), lambda_=st.floats(0.0, 1.0))
def test_a_time_limit_that_is_an_end_is_a_termination(segment, discount, lambda_):
    rewards, values, next_values, terminated, truncated = segment.arguments
    ended = (rewards, values, next_values, terminated | truncated, torch.zeros_like(truncated))
    found = gae(*segment.arguments, discount=discount, gae_lambda=lambda_, time_limit="end")
    assert torch.equal(found, gae(*ended, discount=discount, gae_lambda=lambda_))
    log_ratio = tensors(segment.log_ratio)
    targets = vtrace(*segment.arguments, *log_ratio, discount=discount, lambda_=lambda_, time_limit="end")
    expected = vtrace(*ended, *log_ratio, discount=discount, lambda_=lambda_)
    assert torch.equal(targets.value_targets, expected.value_targets)
    assert torch.equal(targets.advantages, expected.advantages)


def test_the_value_after_a_time_limit_that_is_an_end_is_never_read():
    segment = hand_segment(NONE, INSIDE)
    segment[2][1] = math.nan
    advantages = gae(*segment, discount=0.9, gae_lambda=0.5, time_limit="end")
    assert advantages.tolist() == pytest.approx([0.95, -1.0, 6.1], abs=1e-12)


@given(segment=segments(), discount=st.floats(0.0, 1.0), lambda_=st.floats(0.0, 1.0))
def test_gae_is_the_weighted_mean_of_n_step_returns(segment, discount, lambda_):
    advantages = gae(*segment.arguments, discount=discount, gae_lambda=lambda_)
    assert advantages.tolist() == pytest.approx(slow_gae(segment, discount, lambda_), abs=1e-9)


@given(
    segment=segments(),
    discount=st.floats(0.0, 1.0),
    lambda_=st.floats(0.0, 1.0),
    rho_bar=st.floats(0.2, 3.0),
    c_bar=st.floats(0.2, 3.0),
)
def test_vtrace_is_its_explicit_sum_over_time(segment, discount, lambda_, rho_bar, c_bar):
    found = vtrace(
        *segment.arguments,
        *tensors(segment.log_ratio),
        discount=discount,
        lambda_=lambda_,
        rho_bar=rho_bar,
        c_bar=c_bar,
    )
    value_targets, advantages = slow_vtrace(segment, discount, lambda_, rho_bar, c_bar)
    assert found.value_targets.tolist() == pytest.approx(value_targets, rel=1e-9, abs=1e-9)
    assert found.advantages.tolist() == pytest.approx(advantages, rel=1e-9, abs=1e-9)


@given(segment=segments(), discount=st.floats(0.0, 1.0), lambda_=st.floats(0.0, 1.0))
def test_on_policy_vtrace_is_gae(segment, discount, lambda_):
    on_policy = torch.zeros(len(segment.rewards), dtype=torch.float64)
    targets = vtrace(*segment.arguments, on_policy, discount=discount, lambda_=lambda_)  # type: ignore[arg-type]
    advantages = gae(*segment.arguments, discount=discount, gae_lambda=lambda_)
    assert torch.allclose(targets.advantages, advantages, rtol=0, atol=1e-12)
    assert torch.allclose(targets.value_targets, advantages + segment.arguments[1], rtol=0, atol=1e-12)


@given(segment=segments(max_length=1), x=st.floats(-5.0, 5.0))
def test_vtrace_advantages_of_a_single_step_do_not_depend_on_its_ratio(segment, x):
    at = [vtrace(*segment.arguments, *tensors([ratio]), discount=0.9).advantages.item() for ratio in (x, 0.0)]
    assert at[0] == at[1]


@given(first=segments(), second=segments())
def test_nothing_passes_from_one_episode_into_the_one_before(first, second):
    for flag in ("terminated", "truncated"):
        joined = Segment(*([*getattr(first, f), *getattr(second, f)] for f in Segment.__dataclass_fields__))
        getattr(joined, flag)[len(first.rewards) - 1] = True
        alone = Segment(**{f: list(getattr(first, f)) for f in Segment.__dataclass_fields__})
        getattr(alone, flag)[-1] = True
        together = gae(*joined.arguments, discount=0.9, gae_lambda=0.8)[: len(first.rewards)]
        assert torch.equal(together, gae(*alone.arguments, discount=0.9, gae_lambda=0.8))


@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_padding_after_the_end_and_the_value_after_a_termination_are_never_read(flag):
    end = [False, True, False]
    flags = (end, NONE) if flag == "terminated" else (NONE, end)
    rewards, values, next_values, terminated, truncated = hand_segment(*flags)
    clean = gae(rewards, values, next_values, terminated, truncated, discount=0.9, gae_lambda=0.5)[:2]
    rewards[2] = values[2] = next_values[2] = math.nan
    log_ratio = torch.tensor([0.0, 0.0, math.nan], dtype=torch.float64)
    if flag == "terminated":
        next_values[1] = math.nan
    args = (rewards, values, next_values, terminated, truncated)
    assert torch.equal(gae(*args, discount=0.9, gae_lambda=0.5)[:2], clean)
    targets = vtrace(*args, log_ratio, discount=0.9, lambda_=0.5)
    assert torch.allclose(targets.advantages[:2], clean)
    assert torch.allclose(targets.value_targets[:2], clean + values[:2])


def test_a_batch_is_its_rows():
    first, second = hand_segment(LAST, NONE), hand_segment(NONE, LAST)
    batch = [torch.stack(pair) for pair in zip(first, second, strict=True)]
    advantages = gae(*batch, discount=0.9, gae_lambda=0.5)
    assert torch.equal(advantages[0], gae(*first, discount=0.9, gae_lambda=0.5))
    assert torch.equal(advantages[1], gae(*second, discount=0.9, gae_lambda=0.5))
    log_ratio = torch.tensor([LOG_RATIO, LOG_RATIO[::-1]], dtype=torch.float64)
    targets = vtrace(*batch, log_ratio, discount=0.9)  # type: ignore[arg-type]
    row = vtrace(*second, log_ratio[1], discount=0.9)  # type: ignore[arg-type]
    assert torch.equal(targets.value_targets[1], row.value_targets)
    assert torch.equal(targets.advantages[1], row.advantages)


def test_extreme_ratios_stay_within_their_bounds():
    log_ratio = torch.tensor([math.inf, -math.inf, 1e30])
    args = [tensor.float() if tensor.is_floating_point() else tensor for tensor in hand_segment(NONE, NONE)]
    targets = vtrace(*args, log_ratio, discount=0.9)  # type: ignore[arg-type]
    assert targets.value_targets.tolist() == pytest.approx([0.5 + 1.4, 1.0, 5.6])
    assert targets.advantages.isfinite().all()


def test_targets_are_constants_for_the_optimiser_and_leave_their_inputs_alone():
    args = hand_segment(NONE, NONE)
    before = [tensor.clone() for tensor in args]
    args[1].requires_grad_()
    targets = vtrace(*args, *tensors(LOG_RATIO), discount=0.9)
    assert not gae(*args, discount=0.9, gae_lambda=0.5).requires_grad
    assert not targets.value_targets.requires_grad
    assert not targets.advantages.requires_grad
    assert all(torch.equal(now, then) for now, then in zip(args, before, strict=True))


def test_wrong_shapes_are_refused():
    args = hand_segment(NONE, NONE)
    with pytest.raises(ValueError, match=r"found \[\(3,\), \(2,\)"):
        gae(args[0], args[1][:2], *args[2:], discount=0.9, gae_lambda=0.5)
    with pytest.raises(ValueError, match=r"\(T,\) or \(B, T\)"):
        gae(*(tensor.reshape(1, 1, 3) for tensor in args), discount=0.9, gae_lambda=0.5)
    with pytest.raises(ValueError, match="equal shapes"):
        vtrace(*args, torch.zeros(2), discount=0.9)  # type: ignore[arg-type]


@pytest.mark.parametrize("time_limit", ["End", "bootstrapped", None])
def test_a_meaning_of_the_time_limit_that_does_not_exist_is_refused(time_limit):
    args = hand_segment(NONE, NONE)
    with pytest.raises(ValueError, match=r"time_limit: found .*, allowed are end, bootstrap"):
        gae(*args, discount=0.9, gae_lambda=0.5, time_limit=time_limit)
    with pytest.raises(ValueError, match=r"time_limit: found .*, allowed are end, bootstrap"):
        vtrace(*args, torch.zeros(3), discount=0.9, time_limit=time_limit)  # type: ignore[arg-type]
