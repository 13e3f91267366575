"""Sampling the ideal policy: values worked out by hand, and a small simulation."""

import numpy as np
import pytest

from parity_jax import theory

PRINTED = 0.51e-6  # half a unit of the sixth digit

# p, tau: A, C, P(long), pass@4, maj@4, maj@9, longest@4
TABLE = [
    (0.1, 1, 0.550000, 0.181818, 0.100000, 0.958994, 0.574750, 0.621421, 0.671950),
    (0.25, 1, 0.625000, 0.400000, 0.250000, 0.980225, 0.683594, 0.783382, 0.841797),
    (0.4, 1, 0.700000, 0.571429, 0.400000, 0.991900, 0.784000, 0.901191, 0.935200),
    (0.1, 0.5, 0.599010, 0.047059, 0.028189, 0.933988, 0.520526, 0.530826, 0.554038),
    (0.25, 0.5, 0.735294, 0.307692, 0.226244, 0.963971, 0.656657, 0.708223, 0.820780),
    (0.4, 0.5, 0.844828, 0.640000, 0.540690, 0.995432, 0.857001, 0.944751, 0.977747),
    (0.1, 2, 0.525063, 0.320377, 0.168218, 0.966453, 0.623214, 0.688997, 0.760664),
]


def table_row(p: float, tau: float) -> list[float]:
    return [
        *theory.probs(p, tau),
        theory.p_long(p, tau),
        theory.pass_at_k(p, 4, tau),
        theory.majority_at_k(p, 4, tau),
        theory.majority_at_k(p, 9, tau),
        theory.longest_of_k(p, 4, tau),
    ]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"p{row[0]}-tau{row[1]}")
def test_sampling_table(row):
    p, tau, *expected = row
    np.testing.assert_allclose(table_row(p, tau), expected, atol=PRINTED, rtol=0)


@pytest.mark.parametrize(
    "value, expected",
    [
        (theory.accuracy(0.25, 0.5), 0.613122),
        (theory.expected_length(0.25, 16, 0.5), 4.393665),
        (theory.class_success(0.1, 0.5), (0.599010, 0.429179)),
        (theory.tau_majority([0.1, 0.25]), (0.746989, 0.517659)),
        (theory.tau_best([0.25, 0.3]), (2.009257, 0.358308)),
        (theory.p_long(0.25, theory.tau_best(0.25)), 0.253291),
        (theory.p_long(0.3, theory.tau_best(0.3)), 0.334614),
    ],
)
def test_sampling_values(value, expected):
    np.testing.assert_allclose(value, expected, atol=PRINTED, rtol=0)


def test_policy_is_calibrated_at_temperature_one():
    p = np.linspace(1e-9, 1 - 1e-9, 101)
    np.testing.assert_allclose(theory.p_long(p), p, rtol=1e-12)
    np.testing.assert_allclose(theory.accuracy(p), (1 + p) / 2, rtol=1e-12)
    np.testing.assert_allclose(theory.class_success(p), [(1 + p) / 2] * 2, rtol=1e-12)
    np.testing.assert_allclose(theory.pass_at_k(p, 3), 1 - ((1 - p) / 2) ** 3)
    a, c = theory.odds(p)
    np.testing.assert_allclose(a, 1 + c, rtol=1e-12)


def test_one_sample_is_a_sample():
    p, tau = np.array([[0.1], [0.3], [0.6]]), np.array([0.4, 1.0, 3.0])
    accuracy = theory.accuracy(p, tau)
    assert accuracy.shape == (3, 3)
    for best_of in (theory.pass_at_k, theory.majority_at_k, theory.longest_of_k):
        np.testing.assert_allclose(best_of(p, 1, tau), accuracy, rtol=1e-12)
    np.testing.assert_allclose(
        np.mean(theory.class_success(p, tau), axis=0), accuracy, rtol=1e-12
    )


def test_greedy_is_the_cold_limit():
    p = np.array([1e-9, 0.2, 0.33, 0.34, 0.9])
    is_long, accuracy = theory.greedy(p)
    assert is_long.tolist() == [False, False, False, True, True]
    np.testing.assert_allclose(theory.p_long(p, 1e-3), is_long, atol=1e-6)
    np.testing.assert_allclose(theory.accuracy(p, 1e-3), accuracy, atol=1e-6)
    assert theory.greedy(0.4) == (True, 1.0)
    assert theory.greedy(0.3) == (False, 0.5)


def test_hot_limit_and_extreme_arguments_stay_finite():
    assert theory.p_long(0.3, 1e9) == pytest.approx(0.25, abs=1e-9)
    p, tau = np.array([1e-300, 1e-12, 1 - 1e-12])[:, None], np.array([1e-3, 0.1, 50.0])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        for value in (
            *theory.probs(p, tau),
            theory.accuracy(p, tau),
            *theory.class_success(p, tau),
            theory.pass_at_k(p, 9, tau),
            theory.majority_at_k(p, 9, tau),
            theory.longest_of_k(p, 9, tau),
        ):
            assert np.all((value >= 0) & (value <= 1))
        assert theory.odds(0.9, 1e-3) == (np.inf, np.inf)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.25, 0.33])
def test_majority_vote_turns_at_tau_majority(p):
    tau = theory.tau_majority(p)
    assert theory.class_success(p, tau)[1] == pytest.approx(0.5, abs=1e-12)
    assert theory.class_success(p, tau * 0.999)[1] < 0.5
    assert theory.class_success(p, tau * 1.001)[1] > 0.5


@pytest.mark.parametrize("p", [0.2361, 0.25, 0.3, 0.3333])
def test_tau_best_maximises_long_share(p):
    tau = theory.tau_best(p)
    best = theory.p_long(p, tau)
    around = theory.p_long(p, tau * np.array([0.5, 0.99, 1.01, 2.0]))
    assert np.all(around < best)


def test_scalars_in_scalars_out():
    for value in (*table_row(0.1, 0.5), theory.tau_best(0.25), *theory.greedy(0.4)):
        assert np.isscalar(value)
    assert theory.pass_at_k([0.1, 0.2], [[1], [2], [3]]).shape == (3, 2)


@pytest.mark.parametrize("p, tau", [(0.1, 0.5), (0.25, 1.0), (0.4, 2.0)])
def test_sampling_matches_simulated_answers(p, tau):
    """Draw token by token from the demonstrations' conditional frequencies."""
    rng, num, k, d = np.random.default_rng(11), 200_000, 5, 8
    logit_a = np.log(((1 + p) / 2) / ((1 - p) / 2))
    logit_c = np.log(p / ((1 - p) / 2))
    first_right = rng.random((num, k)) < 1 / (1 + np.exp(-logit_a / tau))
    goes_on = rng.random((num, k)) < 1 / (1 + np.exp(-logit_c / tau))
    is_long = first_right & goes_on
    parity_is_x1 = rng.random((num, 1)) < 0.5
    right = is_long | (first_right == parity_is_x1)
    votes = right.sum(axis=1)
    pick = right[np.arange(num), is_long.argmax(axis=1)]
    tol = 4 * 0.5 / np.sqrt(num)
    assert right[:, 0].mean() == pytest.approx(theory.accuracy(p, tau), abs=tol)
    assert (votes > 0).mean() == pytest.approx(theory.pass_at_k(p, k, tau), abs=tol)
    assert (votes > k / 2).mean() == pytest.approx(
        theory.majority_at_k(p, k, tau), abs=tol
    )
    assert pick.mean() == pytest.approx(theory.longest_of_k(p, k, tau), abs=tol)
    length = np.where(is_long[:, 0], d, 1).mean()
    expected = theory.expected_length(p, d, tau)
    assert length == pytest.approx(expected, abs=(d - 1) * tol)
    assert theory.expected_length(p, d, tau, count_eos=True) == expected + 1


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: theory.probs(0.0), r"p must lie in \(0, 1\), got 0\.0$"),
        (lambda: theory.p_long([0.2, 1.5, 2.0]), r"p must .* got 1\.5$"),
        (lambda: theory.accuracy(np.nan), "p must .* got nan"),
        (lambda: theory.odds(0.1, 0.0), r"tau must lie in \(0, inf\)"),
        (lambda: theory.expected_length(0.1, 2), "d must be an integer >= 3, got 2"),
        (lambda: theory.pass_at_k(0.1, 0), "k must be an integer >= 1"),
        (lambda: theory.majority_at_k(0.1, 2.5), "k must be an integer >= 1, got 2.5"),
        (lambda: theory.longest_of_k(0.1, -1), "k must be an integer"),
        (lambda: theory.tau_majority(0.34), r"p must lie in \(0, 0\.333333\)"),
        (lambda: theory.tau_best(0.2), r"p must lie in \(0\.236068, 0\.333333\)"),
        (lambda: theory.greedy(1 / 3), "p must differ from the tie at 0.333333"),
        (lambda: theory.greedy([0.2, 1 / 3 + 1e-13]), "tie"),
    ],
)
def test_domain_errors_are_one_line(call, match):
    with pytest.raises(ValueError, match=match) as error:
        call()
    assert "\n" not in str(error.value)
