"""Where every function of the theory begins and ends to be defined."""

import numpy as np
import pytest

from parity_jax import theory

OF_P = {
    "odds": theory.odds,
    "probs": theory.probs,
    "p_long": theory.p_long,
    "accuracy": theory.accuracy,
    "expected_length": lambda p: theory.expected_length(p, 3),
    "class_success": theory.class_success,
    "greedy": theory.greedy,
    "pass_at_k": lambda p: theory.pass_at_k(p, 1),
    "majority_at_k": lambda p: theory.majority_at_k(p, 1),
    "longest_of_k": lambda p: theory.longest_of_k(p, 1),
    "ridge_first": lambda p: theory.ridge_first(p, 0.0),
    "ridge_gate": lambda p: theory.ridge_gate(p, 1e-3),
    "ridge_gate_free": lambda p: theory.ridge_gate(p, 1e-3, reg_bias=False),
    "linear_weights": lambda p: theory.linear_weights(p, 3, 1e-3)[1],
    "ridge_stats": lambda p: list(theory.ridge_stats(p, 3, 1e-3).values()),
    "finite_sample_sd": lambda p: list(theory.finite_sample_sd(p, 1, 4).values()),
    "star_p": lambda p: theory.star_p(p, 0),
    "star_trajectory": lambda p: theory.star_trajectory(p, 0),
    "star_rounds": theory.star_rounds,
    "pretrain_state": lambda p: np.hstack(theory.pretrain_state(p, 3)),
    "noisy_accuracy": lambda p: theory.noisy_accuracy(p, 3, 0.0, "step"),
    "pg_flow_time": theory.pg_flow_time,
    "pg_num_updates": lambda p: theory.pg_num_updates(p, 10.0, 3, G=2, max_updates=9),
    "mixture_leap": lambda p: list(theory.mixture_leap(p, 0.0, 3, 6).values()),
    "bound_first": lambda p: theory.bound_first(p, 1e-3, 1, 3, 0.5),
    "bound_gate": lambda p: theory.bound_gate(p, 1e-3, 1, 3, 0.5),
}


@pytest.mark.parametrize("name", OF_P)
@pytest.mark.parametrize("p", [-0.1, 0.0, 1.0, np.nan, np.inf])
def test_mixture_ratio_is_strictly_between_zero_and_one(name, p):
    with pytest.raises(ValueError, match=rf"p1? must lie in \(0, 1\), got {p}$"):
        OF_P[name](p)


@pytest.mark.parametrize("name", OF_P)
@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_smallest_other_arguments_are_allowed(name, p):
    assert np.all(np.isfinite(OF_P[name](p)))


@pytest.mark.parametrize(
    "value",
    [
        theory.ridge_chain(1e-3, [0.0, 1.0]),
        theory.bound_chain(1e-3, 1, 3, [2, 3], 0.5),
        theory.grpo_gain(0.5, 2, eps=0.0, ddof=1),
        theory.pg_expected_update(0.0, 0.0, 3, 2, Ls=1, Ll=1),
        theory.alpha_critical(3, f_long=1.0, f_short=0.0, long_len=2),
        theory.greedy_threshold(0.0, eps2=[0.0, 0.5]),
        theory.skill_thresholds([0.5, 1.0]),
    ],
    ids=lambda value: str(np.round(value, 3)),
)
def test_closed_ends_are_allowed(value):
    assert np.all(np.isfinite(value))
