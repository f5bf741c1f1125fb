"""The surrogates: literal numbers, and properties that follow from the paper's definitions.

Which test goes red under which planted fault (each was planted and seen):

    sign of the policy loss flipped         test_policy_loss.py   test_golden_losses_of_the_six_element_vector
                                                                  test_a_descent_step_makes_a_good_action_likelier
    trust weight without stop-gradient      here                  test_gipo_gradient_is_the_trust_weight_times_the_ratio
    log-ratio as behaviour over learner     test_policy_loss.py   test_the_ratio_is_learner_over_behaviour
    truncation treated as termination       test_targets.py       test_gae_hand_vector
                                                                  test_vtrace_hand_vector
    V-trace advantages times ρ (ρ twice)    test_targets.py       test_vtrace_hand_vector
    bound only on the weight's copy of x    here                  test_a_far_log_ratio_is_bounded_in_both_factors
    no bound, or e^x · ω as two exponents   here                  test_value_and_gradient_are_finite_for_every_log_ratio
    mask multiplied instead of selected     test_policy_loss.py   test_masked_places_have_no_effect_whatever_they_hold
"""

import math
from functools import partial
from inspect import signature

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla_rl.rl.surrogates import KINDS, MAX_LOG_RATIO, SURROGATES, Gipo, NoClip, Ppo, gipo, no_clip, ppo, sapo

ALL = SURROGATES | {  # at the defaults of their fields, and GIPO at others too
    "gipo 0.2": partial(gipo, sigma=0.2),
    "gipo 2": partial(gipo, sigma=2.0),
    "gipo aware": partial(gipo, sigma=1.0, negative_sigma_scale=0.5),
    "decoupled_ppo halfway": partial(SURROGATES["decoupled_ppo"], proximal=0.5),
    "decoupled_ppo current": partial(SURROGATES["decoupled_ppo"], proximal=1.0, max_weight=None),
}
EXTREME = [
    -math.inf,
    -1e30,
    -1000.0,
    -89.0,
    -60.0,
    -21.0,
    -5.0,
    0.0,
    5.0,
    21.0,
    60.0,
    88.8,
    89.0,
    710.0,
    1e30,
    math.inf,
]
every_surrogate = pytest.mark.parametrize("surrogate", ALL.values(), ids=ALL.keys())
ratios = st.floats(0.02, 50.0)
log_ratios = st.floats(-20.0, 20.0)
advantage_values = st.floats(-10.0, 10.0)


def float64(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def weight(surrogate, log_ratio, advantage):
    """Autograd's dJ/dx over A, in float64: the paper's factor on ∇log π."""
    x = float64(log_ratio).requires_grad_()
    surrogate(x, float64(advantage)).sum().backward()
    return x.grad.item() / advantage


@pytest.mark.parametrize(
    ("surrogate", "ratio", "advantage", "objective"),
    [
        (no_clip, 1.5, 2.0, 3.0),
        (no_clip, 0.5, -2.0, -1.0),
        (ppo, 1.5, 2.0, 2.4),  # clipped at 1.2
        (ppo, 0.5, 2.0, 1.0),
        (ppo, 1.5, -2.0, -3.0),
        (ppo, 0.5, -2.0, -1.6),  # clipped at 0.8
        (partial(ppo, clip_low=0.1, clip_high=0.3), 1.5, 1.0, 1.3),
        (partial(ppo, clip_low=0.1, clip_high=0.3), 0.5, -1.0, -0.9),
        (partial(ppo, dual_clip=3.0), 4.0, -2.0, -6.0),  # 3 · −2 instead of 4 · −2
        (partial(ppo, dual_clip=3.0), 2.5, -2.0, -5.0),
        (partial(ppo, dual_clip=3.0), 4.0, 2.0, 2.4),  # good actions as before
        (partial(ppo, dual_clip=3.0), 0.5, -2.0, -1.6),
        (partial(ppo, dual_clip=1.1), 1.15, 2.0, 2.3),
        (partial(ppo, dual_clip=1.1), 1.15, -2.0, -2.2),  # inside the other clip's range
        (sapo, 1.0, 3.0, 6.0),  # 4/1 · 1/2 · 3
        (sapo, 1.0, -3.0, -3.0),  # 4/2 · 1/2 · −3
        (sapo, 2.0, 1.0, 2.9242343145200195),  # 4 sigmoid(1)
        (sapo, 2.0, -1.0, -1.7615941559557649),  # 2 sigmoid(2)
        (partial(gipo, sigma=1.0), math.e, 1.0, 1.6487212707001282),  # e^(1 − 1/2)
        (partial(gipo, sigma=2.0), math.e, -1.0, -2.398875293967098),  # e^(1 − 1/8)
        (partial(gipo, sigma=0.5), 1 / math.e, 1.0, 0.049787068367863944),  # e^(−1 − 2)
    ],
)
def test_objective_at_hand_computed_points(surrogate, ratio, advantage, objective):
    assert surrogate(float64(ratio).log(), float64(advantage)).item() == pytest.approx(objective, abs=1e-12)


@pytest.mark.parametrize(
    ("surrogate", "ratio", "advantage", "expected"),
    [
        (no_clip, 3.0, 1.0, 3.0),
        (ppo, 1.3, 1.0, 0.0),
        (ppo, 0.7, 1.0, 0.7),
        (ppo, 1.3, -1.0, 1.3),
        (ppo, 0.7, -1.0, 0.0),
        (partial(ppo, dual_clip=3.0), 2.9, -1.0, 2.9),
        (partial(ppo, dual_clip=3.0), 3.1, -1.0, 0.0),
        (sapo, 2.06009, 1.0, 1.57467),  # its largest weights
        (sapo, 1.37965, -1.0, 1.19845),
    ],
)
def test_weight_at_known_points(surrogate, ratio, advantage, expected):
    assert weight(surrogate, math.log(ratio), advantage) == pytest.approx(expected, abs=5e-6)


@given(x=log_ratios, sigma=st.floats(0.1, 5.0), advantage=advantage_values.filter(lambda a: abs(a) > 1e-3))
def test_gipo_gradient_is_the_trust_weight_times_the_ratio(x, sigma, advantage):
    # A live trust weight would add the factor 1 − x/σ²: zero at x = σ², the wrong sign beyond.
    assert weight(partial(gipo, sigma=sigma), x, advantage) == pytest.approx(
        math.exp(x - x * x / (2 * sigma * sigma)), rel=1e-9, abs=1e-300
    )


def test_gipo_pushes_the_right_way_beyond_its_peak():
    assert weight(partial(gipo, sigma=1.0), 1.0, 1.0) == pytest.approx(math.exp(0.5))
    assert weight(partial(gipo, sigma=1.0), 3.0, 1.0) == pytest.approx(math.exp(-1.5))


@every_surrogate
@given(advantage=advantage_values)
def test_on_policy_every_gradient_is_the_advantage(surrogate, advantage):
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    surrogate(x, float64(advantage)).sum().backward()
    assert x.grad.item() == pytest.approx(advantage, rel=1e-12)


@given(x=log_ratios, sigma=st.floats(0.1, 5.0))
def test_gipo_trust_weight_is_the_same_for_a_ratio_and_its_inverse(x, sigma):
    def log_trust_weight(log_ratio):
        return math.log(gipo(float64(log_ratio), float64(1.0), sigma=sigma).item()) - log_ratio

    if abs(x) / sigma < 20.0:  # e^-200 is still a number
        assert log_trust_weight(x) == pytest.approx(log_trust_weight(-x), abs=1e-9)


@given(x=log_ratios, advantage=advantage_values)
def test_gipo_with_an_infinitely_wide_gaussian_is_no_clip(x, advantage):
    wide = gipo(float64(x), float64(advantage), sigma=1e9)
    assert wide.item() == pytest.approx(no_clip(float64(x), float64(advantage)).item(), rel=1e-12)


@given(x=log_ratios.filter(lambda x: abs(x) > 1e-3), advantage=advantage_values)
def test_gipo_with_a_vanishing_gaussian_keeps_only_on_policy_samples(x, advantage):
    assert gipo(float64(x), float64(advantage), sigma=1e-5).item() == 0.0


@given(
    x=st.floats(allow_nan=False),
    sigma=st.floats(0.05, 4.5),
    scale=st.floats(0.1, 1.0),
    sign=st.sampled_from([-1.0, 1.0]),
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gipo_multiplier_never_exceeds_its_bound(dtype, x, sigma, scale, sign):
    log_ratio = torch.tensor([x], dtype=dtype, requires_grad=True)
    gipo(log_ratio, torch.tensor([sign], dtype=dtype), sigma=sigma, negative_sigma_scale=scale).sum().backward()
    bound = math.exp((sigma if sign > 0 else sigma * scale) ** 2 / 2)
    assert abs(log_ratio.grad.item()) <= bound * (1 + 4 * torch.finfo(dtype).eps)


def test_a_far_log_ratio_is_bounded_in_both_factors():
    # Bounding the weight's copy alone would give 555 here; the lemma allows 7.39.
    assert gipo(float64(60.0), float64(1.0), sigma=2.0).item() < math.exp(2.0)


@every_surrogate
@pytest.mark.parametrize("advantage", [2.0, -2.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_value_and_gradient_are_finite_for_every_log_ratio(surrogate, advantage, dtype):
    x = torch.tensor(EXTREME, dtype=dtype, requires_grad=True)
    objective = surrogate(x, torch.full_like(x, advantage, requires_grad=False))
    objective.sum().backward()
    assert objective.shape == x.shape
    assert objective.isfinite().all()
    assert x.grad.isfinite().all()


@given(x=st.floats(allow_nan=False), advantage=st.floats(-1e3, 1e3))
@every_surrogate
def test_value_and_gradient_are_finite_for_any_float(surrogate, x, advantage):
    log_ratio = torch.tensor([x], dtype=torch.float32, requires_grad=True)
    objective = surrogate(log_ratio, torch.tensor([advantage]))
    objective.sum().backward()
    assert objective.isfinite().all()
    assert log_ratio.grad.isfinite().all()


@every_surrogate
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_beyond_the_bound_the_objective_is_constant(surrogate, sign):
    x = float64(-math.inf, -50.0, 50.0, math.inf).requires_grad_()
    surrogate(x, torch.full_like(x, sign, requires_grad=False)).sum().backward()
    assert x.grad.tolist() == [0.0] * 4


@pytest.mark.parametrize("x", [-20.72, -10.0, 10.0, 20.72])
def test_inside_the_bound_nothing_is_changed(x):
    assert 20.7232658369 <= MAX_LOG_RATIO <= 80.0
    assert weight(no_clip, x, 1.0) == pytest.approx(math.exp(x), rel=1e-12)
    assert weight(ppo, -x, math.copysign(1.0, x)) == pytest.approx(math.exp(-x), rel=1e-12)
    assert weight(partial(gipo, sigma=4.0), x, 1.0) == pytest.approx(math.exp(x - x * x / 32.0), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("ratio", "advantage"), [(1.25, 1.0), (0.75, -1.0)])
def test_ppo_is_alive_exactly_on_its_edges_and_dead_one_step_beyond(dtype, ratio, advantage):
    x = torch.tensor(math.log(ratio), dtype=dtype)
    width = abs(x.exp().item() - 1.0)  # exact, so that the edge is the very number the ratio is
    for clip, alive in ((width, True), (width - 1e-6, False)):
        leaf = x.clone().requires_grad_()
        ppo(leaf, torch.tensor(advantage, dtype=dtype), clip_low=clip, clip_high=clip).backward()
        assert leaf.grad.item() == (pytest.approx(ratio * advantage) if alive else 0.0)


@given(x=log_ratios, advantage=advantage_values, sigma=st.floats(0.1, 3.0))
def test_a_negative_sigma_scale_of_one_is_plain_gipo_bit_for_bit(x, advantage, sigma):
    for dtype in (torch.float32, torch.float64):
        args = torch.tensor([x], dtype=dtype), torch.tensor([advantage], dtype=dtype)
        assert torch.equal(gipo(*args, sigma=sigma, negative_sigma_scale=1.0), gipo(*args, sigma=sigma))


@given(x=log_ratios, sigma=st.floats(0.1, 3.0), scale=st.floats(0.1, 2.0), size=st.floats(0.1, 10.0))
def test_advantage_aware_gipo_is_gipo_with_another_sigma_per_sign(x, sigma, scale, size):
    args = float64(x, x), float64(size, -size)
    aware = gipo(*args, sigma=sigma, negative_sigma_scale=scale)
    assert torch.equal(aware[:1], gipo(*(arg[:1] for arg in args), sigma=sigma))
    assert torch.equal(aware[1:], gipo(*(arg[1:] for arg in args), sigma=sigma * scale))


@every_surrogate
def test_a_zero_advantage_contributes_nothing(surrogate):
    x = float64(-3.0, 0.0, 3.0).requires_grad_()
    objective = surrogate(x, torch.zeros(3, dtype=torch.float64))
    objective.sum().backward()
    assert objective.tolist() == [0.0] * 3
    assert x.grad.tolist() == [0.0] * 3


@pytest.mark.parametrize("name", ["no_clip", "ppo", "sapo"])
def test_gradcheck_where_the_objective_is_smooth(name):
    x = float64(-1.5, -0.4, -0.1, 0.05, 0.15, 0.6, 2.0).requires_grad_()
    for sign in (1.0, -1.0):
        advantages = sign * float64(1.0, 2.0, 0.5, 1.5, 0.7, 0.3, 1.1)
        assert torch.autograd.gradcheck(lambda x, a=advantages: SURROGATES[name](x, a), x)


def test_gradcheck_of_gipo_with_its_weight_held_constant():
    x = float64(-1.5, -0.4, 0.0, 0.6, 2.0).requires_grad_()
    advantages = float64(1.0, -2.0, 0.5, -1.5, 0.7)
    omega = torch.exp(-0.5 * x.detach().square() / 0.49)

    def constant_weight(x):
        return omega * x.exp() * advantages

    assert torch.autograd.gradcheck(constant_weight, x)
    (expected,) = torch.autograd.grad(constant_weight(x).sum(), x)
    (found,) = torch.autograd.grad(gipo(x, advantages, sigma=0.7).sum(), x)
    assert torch.allclose(found, expected, rtol=1e-12)


@every_surrogate
def test_shape_is_kept_and_precision_is_not_lowered(surrogate):
    for dtype, result in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ):
        objective = surrogate(torch.zeros(2, 3, 4, dtype=dtype), torch.ones(2, 3, 4, dtype=dtype))
        assert (objective.shape, objective.dtype) == ((2, 3, 4), result)


def test_every_surrogate_has_its_name():
    assert list(SURROGATES) == list(KINDS)
    for name, kind in KINDS.items():
        assert (SURROGATES[name].__name__, kind(name=name).name, kind(name=name).label.split()[0]) == (name,) * 3


@pytest.mark.parametrize("name", KINDS)
def test_a_surrogate_at_its_defaults_is_its_plain_function(name):
    x, advantages = float64(-2.0, -0.3, 0.0, 0.4, 3.0), float64(1.0, -1.0, 2.0, -2.0, 0.5)
    assert torch.equal(KINDS[name](name=name).objective(x, advantages), SURROGATES[name](x, advantages))


def test_a_plain_function_takes_the_fields_as_keywords_and_no_others():
    assert list(signature(gipo).parameters) == ["log_ratio", "advantages", "sigma", "negative_sigma_scale"]
    assert gipo(advantages=float64(1.0), log_ratio=float64(1.0), sigma=2.0).item() == pytest.approx(math.exp(7 / 8))
    with pytest.raises(TypeError, match="clip_low"):
        gipo(float64(0.0), float64(1.0), clip_low=0.1)
    with pytest.raises(TypeError, match="positional"):
        gipo(float64(0.0), float64(1.0), 0.5)


@pytest.mark.parametrize(
    ("surrogate", "label"),
    [
        (Gipo(name="gipo"), "gipo σ=1"),
        (Gipo(name="gipo", sigma=0.5, negative_sigma_scale=0.25), "gipo σ=0.5, 0.25 σ for bad actions"),
        (Ppo(name="ppo"), "ppo"),
        (Ppo(name="ppo", clip_high=0.28), "ppo clip_high=0.28"),
    ],
)
def test_a_label_tells_what_is_not_at_its_default(surrogate, label):
    assert surrogate.label == label


def test_only_what_clips_has_a_clip_range_of_its_own():
    assert Ppo(name="ppo", clip_low=0.1, clip_high=0.3).clip_range == (0.1, 0.3)
    assert NoClip(name="no_clip").clip_range == (0.2, 0.2)
