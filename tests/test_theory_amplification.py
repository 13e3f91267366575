"""The mixture of kinds against the parity mixture's theory and plain integration."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import expit, logit

from parity_jax import theory

SHARES = (1e-6, 0.001, 0.01, 0.05, 1 / 17, 0.1, 1 / 9, 0.15, 0.2, 0.25, 1 / 3, 0.34)


@pytest.mark.parametrize("p", SHARES)
def test_the_parity_mixture_is_the_case_of_right_and_blind(p):
    assert theory.star_rounds_to(1 / 3, p) == theory.star_rounds(p)
    rounds = np.arange(5)
    np.testing.assert_allclose(theory.star_share(p, rounds), theory.star_p(p, rounds))
    rate = (1 + p) / 2
    for k in (1, 4, 9):
        assert theory.pass_at_k_of(rate, k) == pytest.approx(theory.pass_at_k(p, k))
        votes = theory.majority_at_k_of(rate, k)
        assert votes == pytest.approx(theory.majority_at_k(p, k))


def test_a_round_is_bayes_rule():
    p, f_long, f_short = 0.2, 0.7, 0.3
    kept_long, kept_short = p * f_long, (1 - p) * f_short
    after = theory.star_share(p, 1, f_long, f_short)
    assert after == pytest.approx(kept_long / (kept_long + kept_short))
    again = theory.star_share(after, 1, f_long, f_short)
    assert theory.star_share(p, 2, f_long, f_short) == pytest.approx(again)
    assert theory.star_rounds_to(0.5, p, 0.3, 0.7) == np.inf  # short ones are better
    assert theory.star_rounds_to(0.1, p, 0.3, 0.7) == 0  # above it already


def test_time_of_the_gate_against_integration():
    def drive(p):
        return 0.4 * theory.grpo_gain(0.5 + 0.4 * p, 8)

    def flow(t, v):
        p = expit(v)
        return drive(p) * p * (1 - p)

    p = 0.07
    time = theory.first_token_flow_time(p, drive)
    path = solve_ivp(flow, (0, time), [logit(p)], rtol=1e-10, atol=1e-12)
    assert path.y[0, -1] == pytest.approx(0, abs=1e-7)
    exact = ((1 - p) / p - p / (1 - p) - 2 * logit(p)) / 0.4
    assert theory.first_token_flow_time(p, 0.4) == pytest.approx(exact)
    assert theory.first_token_flow_time(0.5, 0.4) == 0
