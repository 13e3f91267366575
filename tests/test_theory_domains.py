"""Where every function of the theory begins and ends to be defined."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from parity_jax import theory
from parity_jax.theory._checks import in_range, integer, not_tied, one_of


@pytest.mark.parametrize("closed", ["neither", "left", "right", "both"])
def test_an_interval_has_the_ends_it_says(closed):
    has_low, has_high = closed in ("left", "both"), closed in ("right", "both")
    interval = f"{'[' if has_low else '('}0, 0.5{']' if has_high else ')'}"
    for value, is_inside in [
        (0.25, True),
        (0.0, has_low),
        (0.5, has_high),
        (-0.1, False),
        (np.inf, False),
        (np.nan, False),
    ]:
        if is_inside:
            assert in_range("q", value, 0, 0.5, closed) == value
        else:
            rule = re.escape(f"q must lie in {interval}, got {value}")
            with pytest.raises(ValueError, match=rf"^{rule}$"):
                in_range("q", value, 0, 0.5, closed)


def test_an_error_is_one_line_that_names_the_first_offender():
    with pytest.raises(ValueError, match=r"^p must lie in \(0, 1\), got 1\.5$"):
        in_range("p", [0.2, 1.5, 2.0], 0, 1)
    for value in (2, 3.5, np.inf, np.nan):
        with pytest.raises(
            ValueError, match=f"^d must be an integer >= 3, got {value}"
        ):
            integer("d", [3, value], 3)
    with pytest.raises(ValueError, match=r"^adv must be one of dr, grpo, got 'ppo'$"):
        one_of("adv", "ppo", ("dr", "grpo"))
    with pytest.raises(
        ValueError, match=r"^p must differ from the tie at 0\.333333, got"
    ):
        not_tied("p", [0.2, 1 / 3 + 1e-13], 1 / 3)


def update(**changed: object) -> np.ndarray:
    return theory.pg_expected_update(0, 0, **{"d": 8, "G": 4} | changed)


def star(**changed: object) -> tuple:
    logits = theory.fit_logits(theory.pretrain_state(0.1, 5))
    return theory.star_state_step(logits, **changed)


def test_a_mixture_ratio_is_strictly_between_zero_and_one():
    functions = [  # everything else is at its smallest
        theory.accuracy,
        theory.p_long,
        theory.greedy,
        lambda p: theory.pass_at_k(p, 1),
        lambda p: theory.majority_at_k(p, 1),
        lambda p: theory.star_p(p, 0),
        lambda p: theory.star_trajectory(p, 0),
        theory.star_rounds,
        lambda p: np.hstack(theory.pretrain_state(p, 3)),
        lambda p: theory.noisy_accuracy(p, 3, 0.0, "step"),
        lambda p: list(theory.ridge_stats(p, 3, 1e-3).values()),
        lambda p: theory.bound_first(p, 1e-3, 1, 3, 0.5),
        lambda p: theory.bound_gate(p, 1e-3, 1, 3, 0.5),
        theory.pg_flow_time,
        lambda p: theory.pg_num_updates(p, 10.0, 3, G=2, max_updates=9),
        lambda p: list(theory.mixture_leap(p, 0.0, 3, 6).values()),
    ]
    for function in functions:
        assert np.all(np.isfinite(function(0.2)))
        for p in (0.0, 1.0, np.nan):
            with pytest.raises(
                ValueError, match=rf"^p1? must lie in \(0, 1\), got {p}"
            ):
                function(p)


def test_closed_ends_are_allowed():
    for value in (
        theory.bound_chain(1e-3, 1, 3, [2, 3], 0.5),
        theory.grpo_gain(0.5, 2, eps=0.0, ddof=1),
        theory.pg_expected_update(0.0, 0.0, 3, 2, Ls=1, Ll=1),
        theory.alpha_critical(3, f_long=1.0, f_short=0.0, long_len=2),
        theory.greedy_threshold(0.0, eps2=[0.0, 0.5]),
        theory.skill_thresholds([0.5, 1.0]),
    ):
        assert np.all(np.isfinite(value))


OUTSIDE: dict[str, list[tuple[Callable[[], object], str]]] = {
    "open interval": [
        (lambda: theory.accuracy(0.1, 0.0), "tau must lie in (0, inf), got 0"),
        (lambda: theory.star_trajectory(0.1, 1, 0.0), "tau"),
        (lambda: theory.star_rounds(0.1, -1.0), "tau"),
        (lambda: star(tau=0.0), "tau"),
        (lambda: theory.star_critical_p(1.0), "tau must lie in (0, 1)"),
        (lambda: theory.star_fixed_point(1.0), "tau must lie in (1, inf)"),
        (lambda: theory.ridge_stats(0.1, 8, 1e-3, 0.0), "tau"),
        (lambda: theory.ridge_stats(0.1, 8, 0.0), "lam must lie in (0, inf)"),
        (lambda: theory.bound_first(0.1, 0.0, 1, 8, 0.1), "lam"),
        (lambda: theory.bound_gate(0.1, 0.0, 1, 8, 0.1), "lam"),
        (lambda: theory.bound_gate(0.1, 1e-3, 10, 8, 1.0), "delta"),
        (lambda: theory.bound_chain(0.0, 1, 8, 2, 0.1), "lam"),
        (lambda: theory.pg_crossing_state(0.5), "p must lie in (0, 0.333333)"),
        (lambda: theory.pg_crossing_state(0.1, mu=0.0), "mu"),
        (lambda: theory.pg_crossing_state(0.1, mv=0.0), "mv"),
        (lambda: theory.pg_flow_time(0.1, mu=0.0), "mu"),
        (lambda: theory.pg_flow_time(0.1, delta=0.0), "delta must lie in (0, inf)"),
        (lambda: theory.pg_flow_time(0.1, delta=lambda P: P - 0.2), "delta"),
        (lambda: theory.pg_num_updates(0.1, 0.0, 16, G=2), "lr"),
        (lambda: theory.pg_num_updates(0.1, 0.1, 16, mu=0.0, G=2), "mu"),
        (lambda: update(alpha=np.nan), "alpha"),
        (lambda: theory.grpo_gain(1.0, 4), "s must lie in (0, 1)"),
    ],
    "closed interval": [
        (lambda: theory.grpo_gain(0.5, 4, eps=-1e-3), "eps must lie in [0, inf)"),
        (lambda: update(eps=-1e-3), "eps"),
        (lambda: theory.pretrain_state(0.1, 5, "step", 0.5), "q must lie in [0, 0.5)"),
        (lambda: theory.noisy_accuracy(0.1, 5, 0.5, "step"), "q"),
        (lambda: theory.greedy_threshold(0.5), "q must lie in [0, 0.5)"),
        (lambda: theory.greedy_threshold(0.1, 0.6), "eps2 must lie in [0, 0.5]"),
        (lambda: theory.skill_thresholds(0.4), "g must lie in [0.5, 1]"),
        (lambda: theory.alpha_critical(8, f_long=1.1), "f_long must lie in [0, 1]"),
        (lambda: theory.alpha_critical(8, f_short=-0.1), "f_short"),
        (lambda: theory.fit_logits(theory.pretrain_state(0.1, 5), -1.0), "lam must"),
        (
            lambda: theory.fit_logits(theory.State(0.5, 0.5, 0.5, np.array([1.5]))),
            "eps must lie in [0, 1]",
        ),
        (lambda: theory.bound_first(0.1, 1e-3, 0, 8, 0.1), "T must lie in [1, inf)"),
        (lambda: theory.bound_chain(1e-3, 10, 8, 9, 0.1), "step/d must lie in (0, 1]"),
    ],
    "integer": [
        (lambda: theory.pass_at_k(0.1, 0), "k must be an integer >= 1"),
        (lambda: theory.majority_at_k(0.1, 2.5), "k"),
        (lambda: theory.star_p(0.1, -1), "n must be an integer >= 0"),
        (lambda: theory.star_trajectory(0.1, 1.5), "n"),
        (lambda: theory.pretrain_state(0.1, 2), "d must be an integer >= 3"),
        (lambda: theory.noisy_accuracy(0.1, 2, 0.1, "step"), "d"),
        (lambda: theory.ridge_stats(0.1, 2, 1e-3), "d"),
        (lambda: theory.bound_first(0.1, 1e-3, 1, 2, 0.1), "d"),
        (lambda: theory.bound_chain(1e-3, 10, 8, 1, 0.1), "step must be an integer"),
        (lambda: theory.mixture_leap(0.3, 0.1, 2, 8), "k must be an integer >= 3"),
        (lambda: theory.mixture_leap(0.3, 0.1, 3, 8), "d/k must be an integer >= 2"),
        (lambda: theory.mixture_leap(0.3, 0.1, 6, 6), "d/k must be an integer >= 2"),
        (lambda: theory.grpo_gain(0.5, 1), "G must be an integer >= 2"),
        (lambda: update(G=1), "G"),
        (lambda: update(d=2), "d must be an integer >= 3"),
        (lambda: update(Ls=0), "token count must be an integer >= 1"),
        (lambda: theory.alpha_critical(2), "d must be an integer >= 3"),
        (lambda: theory.alpha_critical(8, long_len=1), "long_len"),
    ],
    "choice": [
        (lambda: update(adv="ppo"), "adv must be one of reinforce, dr, grpo"),
        (lambda: update(norm="mean"), "norm must be one of const, seq, token, token_g"),
        (lambda: update(penalty="sub"), "penalty must be one of add, mult"),
        (lambda: theory.alpha_critical(8, "sub"), "penalty must be one of add, mult"),
        (lambda: theory.pretrain_state(0.1, 5, "no"), "noise must be one of clean, e"),
        (lambda: theory.noisy_accuracy(0.1, 5, 0.1, "clean"), "noise must be one of e"),
        (lambda: star(reward="both"), "reward must be one of e2e, cot, got 'both'"),
        (lambda: theory.grpo_gain(0.5, 4, ddof=2), "ddof must be 0 or 1, got 2"),
        (lambda: theory.grpo_gain(0.5, None, ddof=7), "ddof must be 0 or 1, got 7"),
        (lambda: theory.pg_flow_time(0.4, -1.0), "delta must lie in (0, inf)"),
        (lambda: update(ddof=2), "ddof"),
    ],
    "tie": [
        (lambda: theory.greedy(1 / 3), "p must differ from the tie at 0.333333"),
        (lambda: theory.mixture_leap(0.3, 0.3, 3, 9), "p1 - pk must differ from"),
        (lambda: theory.mixture_leap(0.3, 0.05, 3, 9), "3 p1 + 2 pk must differ"),
    ],
    "together": [
        (lambda: theory.mixture_leap(0.6, 0.4, 3, 9), "p1 + pk must lie in (0, 1)"),
        (lambda: theory.pretrain_state(0.1, 5, "clean", 0.1), "q must be 0 for clean"),
    ],
}


@pytest.mark.parametrize("kind", OUTSIDE)
def test_arguments_outside_the_domain_are_refused(kind):
    for call, message in OUTSIDE[kind]:
        with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
            call()
        assert "\n" not in str(error.value)
