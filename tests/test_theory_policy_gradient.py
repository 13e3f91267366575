"""Policy gradient on two logits: every group enumerated, identities, flow, values."""

import itertools

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import expit, expn
from scipy.stats import binom

from parity_jax import theory

PRINTED = 0.51e-6  # half a unit of the sixth digit
PRINTED_8 = 0.51e-8  # half a unit of the eighth digit
NORMS = ("const", "token", "seq", "token_group")


def start(p: float) -> tuple[float, float]:
    return np.log((1 + p) / (1 - p)), np.log(2 * p / (1 - p))


def long_gradient(u: float, v: float) -> np.ndarray:
    """Gradient of P(long) = A C, twice that of the expected reward (1 + A C)/2."""
    A, C = expit(u), expit(v)
    return A * C * np.array([1 - A, 1 - C])


def token_cost(d: int, P: float) -> float:
    """kappa(P) of 1/length weights, EOS counted."""
    return (1 - P) / (d + 1) + P / 2


def brute_force_update(
    u, v, d, G, adv, norm, baseline=0.0, eps=0.0, ddof=0, alpha=0.0, penalty="add"
):
    """Mean over every ordered group of answers, on both classes of inputs."""
    A, C = expit(u), expit(v)
    mass = [A * C, A * (1 - C), 1 - A]
    score = np.array([[1 - A, 1 - C], [1 - A, -C], [-A, 0]])
    size, tokens = np.array([d, 1, 1]), np.array([d + 1, 2, 2])
    mean_tokens = tokens @ mass
    total = np.zeros(2)
    for correct in ([1, 1, 0], [1, 0, 1]):
        price = alpha * size / d
        reward = correct - price if penalty == "add" else correct * (1 - price)
        for group in itertools.product(range(3), repeat=G):
            group = np.array(group)
            r = reward[group]
            advantage = r - baseline if adv == "reinforce" else r - r.mean()
            if adv == "grpo":
                advantage = advantage / (r.std(ddof=ddof) + eps) if np.ptp(r) else 0 * r
            terms = advantage[:, None] * score[group]
            scale = {
                "const": 1 / G,
                "seq": 1 / G / tokens[group][:, None],
                "token": 1 / G / mean_tokens,
                "token_group": 1 / tokens[group].sum(),
            }
            weight = np.prod([mass[outcome] for outcome in group]) / 2
            total += weight * (terms * scale[norm]).sum(axis=0)
    return total


@pytest.mark.parametrize(
    "G, norm, estimator",
    [
        (2, "const", {"adv": "reinforce", "baseline": 0.3}),
        (3, "token_group", {"adv": "reinforce"}),
        (3, "seq", {"adv": "dr", "alpha": 0.4}),
        (3, "token", {"adv": "dr", "alpha": 0.2, "penalty": "mult"}),
        (4, "const", {"adv": "grpo"}),
        (4, "token_group", {"adv": "grpo", "eps": 0.05, "ddof": 1, "alpha": 0.2}),
        (4, "seq", {"adv": "grpo", "eps": 1e-4, "alpha": 0.3, "penalty": "mult"}),
    ],
)
def test_update_is_the_mean_over_every_group(G, norm, estimator):
    u, v, d = 0.5, -1.0, 7
    update = theory.pg_expected_update(u, v, d, G, norm=norm, **estimator)
    expected = brute_force_update(u, v, d, G, norm=norm, **estimator)
    np.testing.assert_allclose(update, expected, atol=1e-15)


def test_update_values():
    """Groups of 8, too many to enumerate one by one."""
    grpo = [theory.pg_expected_update(*start(0.1), 16, 8, "grpo", n) for n in NORMS]
    expected = [
        (0.04189810, 0.07617836),
        (0.01197089, 0.02176525),
        (0.00431304, 0.00784189),
        (0.00892406, 0.01622556),
    ]
    np.testing.assert_allclose(grpo, expected, atol=PRINTED_8, rtol=0)
    update = theory.pg_expected_update(
        0.5, -1.0, 16, 8, "grpo", "seq", eps=1e-4, ddof=1
    )
    expected = (0.00900050, 0.01380499)
    np.testing.assert_allclose(update, expected, atol=PRINTED_8, rtol=0)


def test_plain_update_is_the_gradient_of_the_expected_reward():
    def reward(u: float, v: float) -> float:
        return (1 + expit(u) * expit(v)) / 2

    u, v, h = 0.3, -2.0, 1e-6
    finite = [
        (reward(u + h, v) - reward(u - h, v)) / (2 * h),
        (reward(u, v + h) - reward(u, v - h)) / (2 * h),
    ]
    for baseline in (0.0, "mean"):
        update = theory.pg_expected_update(u, v, 16, 4, baseline=baseline)
        np.testing.assert_allclose(update, finite, atol=1e-9)
    update = theory.pg_expected_update(*start(0.1), 16, 4)
    np.testing.assert_allclose(update, (0.022500, 0.040909), atol=PRINTED)


@pytest.mark.parametrize(
    "adv, G, eps, ddof", [("dr", 4, 0, 0), ("grpo", 8, 0, 0), ("grpo", 4, 1e-2, 1)]
)
def test_update_closed_forms(adv, G, eps, ddof):
    """g+ and g- scale the two classes' gradients, under all three normalisations."""
    rng = np.random.default_rng(G)
    for u, v, d in zip(*rng.normal(size=(2, 5)), rng.integers(3, 40, 5), strict=True):
        A, C = expit(u), expit(v)
        P, Ls, Ll = A * C, 2, d + 1
        if adv == "dr":
            g_plus = g_minus = 1 - 1 / G
        else:
            g_plus = theory.grpo_gain(A, G, eps, ddof)
            g_minus = theory.grpo_gain(1 - A * (1 - C), G, eps, ddof)
        const = np.array(
            [
                (g_plus * A * (1 - A) - g_minus * A * (1 - A) * (1 - C)) / 2,
                g_minus * A * C * (1 - C) / 2,
            ]
        )
        plus_u = (1 - A) * (C / Ll + (1 - C) / Ls) + A / Ls
        minus_u = (1 - C) * (P / Ll - (1 + P) / Ls)
        plus_v = (1 - A) * (1 / Ll - 1 / Ls)
        minus_v = A * (1 - C) / Ll + (1 - A + P) / Ls
        seq = [
            A * (1 - A) / 2 * (g_plus * plus_u + g_minus * minus_u),
            A * C * (1 - C) / 2 * (g_plus * plus_v + g_minus * minus_v),
        ]
        token = const / (Ls + (Ll - Ls) * P)
        for norm, expected in [("const", const), ("seq", seq), ("token", token)]:
            update = theory.pg_expected_update(
                u, v, d, G, adv, norm, eps=eps, ddof=ddof
            )
            np.testing.assert_allclose(update, expected, atol=1e-15)


def test_update_is_delta_times_gradient():
    """Weights that ignore per-prompt statistics: E[weight score] = Delta grad P."""
    u, v, d, G, alpha = 0.5, -1.0, 12, 5, 0.3
    P, price = expit(u) * expit(v), 1 - 2 * alpha * (d - 1) / d
    tokens, kappa = 2 + (d - 1) * P, token_cost(d, P)
    drives = [
        ({"baseline": 0.7}, price / 2),
        ({"adv": "dr"}, price * (1 - 1 / G) / 2),
        ({"norm": "seq", "baseline": "mean"}, price * kappa / 2),
        ({"norm": "seq", "adv": "dr"}, price * (1 - 1 / G) * kappa / 2),
        ({"norm": "token"}, price / 2 / tokens),
        (
            {"norm": "seq", "baseline": 0.2},
            (0.8 - alpha) / (d + 1) - (0.3 - alpha / d) / 2,
        ),
    ]
    for estimator, delta in drives:
        update = theory.pg_expected_update(u, v, d, G, alpha=alpha, **estimator)
        np.testing.assert_allclose(update, delta * long_gradient(u, v), atol=1e-15)


def test_pairs_make_grpo_reinforce():
    for norm in ("const", "seq", "token"):
        grpo = theory.pg_expected_update(0.5, -1.0, 16, 2, "grpo", norm)
        plain = theory.pg_expected_update(0.5, -1.0, 16, 2, norm=norm, baseline="mean")
        np.testing.assert_allclose(grpo, plain, atol=1e-15)


def test_length_tokens_can_leave_out_eos():
    with_eos = theory.pg_expected_update(0.5, -1.0, 16, 4, norm="seq")
    assert with_eos[1] < 0  # no baseline: 1/length favours short answers
    without = theory.pg_expected_update(0.5, -1.0, 16, 4, norm="seq", Ls=1, Ll=16)
    delta = 1 / 16 - 1 / 2
    np.testing.assert_allclose(without, delta * long_gradient(0.5, -1.0))


def test_grpo_gain_values():
    gains = [theory.grpo_gain(0.55, G) for G in (2, 4, 8, 16, None)]
    expected = [1, 1.617186, 1.862138, 1.943070, 2.010076]
    np.testing.assert_allclose(gains, expected, atol=PRINTED, rtol=0)
    eps, ddof = theory.grpo_gain(0.55, 8, eps=1e-4), theory.grpo_gain(0.55, 8, ddof=1)
    np.testing.assert_allclose([eps, ddof], [1.861738, 1.741870], atol=PRINTED, rtol=0)


def test_grpo_gain_broadcasts_and_its_symmetry_and_limit():
    s = np.array([[0.01, 0.2], [0.5, 0.9]])
    gain = theory.grpo_gain(s, 6, eps=0.01)
    assert gain.shape == s.shape
    np.testing.assert_allclose(theory.grpo_gain(1 - s, 6, eps=0.01), gain)
    np.testing.assert_allclose(theory.grpo_gain(s, 2), 1, rtol=1e-12)
    np.testing.assert_allclose(
        theory.grpo_gain(0.4, 20_000, eps=0.1),
        theory.grpo_gain(0.4, eps=0.1),
        rtol=1e-3,
    )


@pytest.mark.parametrize("s, G, ddof", [(0.55, 8, 1), (0.9, 5, 0)])
def test_mean_advantage_of_right_and_wrong_answers(s, G, ddof):
    """E[adv | right] = (1-s) g and E[adv | wrong] = -s g, which cancel on average."""
    eps, others = 0.01, np.arange(G)
    mass = binom.pmf(others, G - 1, s)

    def advantage(right: int) -> float:
        mean = (others + right) / G
        std = np.sqrt(mean * (1 - mean) * G / (G - ddof))
        return mass @ ((right - mean) / (std + eps))

    gain = theory.grpo_gain(s, G, eps, ddof)
    assert advantage(1) == pytest.approx((1 - s) * gain, rel=1e-12)
    assert advantage(0) == pytest.approx(-s * gain, rel=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_no_drive_at_the_critical_price(norm):
    rng = np.random.default_rng(4)
    for ddof in (0, 1):
        (u, v), d, G = rng.normal(size=2), rng.integers(3, 40), rng.integers(3, 9)
        price = theory.alpha_critical(d)

        def update(alpha: float, u=u, v=v, d=d, G=G, ddof=ddof) -> np.ndarray:
            return theory.pg_expected_update(
                u, v, d, G, "grpo", norm, eps=1e-3, ddof=ddof, alpha=alpha
            )

        np.testing.assert_allclose(update(price), 0, atol=1e-15)
        assert update(0.95 * price)[1] > 1e-9
        assert update(1.05 * price)[1] < -1e-9


def test_multiplicative_critical_price():
    price = theory.alpha_critical(9, "mult")
    for alpha, sign in [(price * 0.99, 1), (price * 1.01, -1)]:
        update = theory.pg_expected_update(0.3, -1.0, 9, 4, alpha=alpha, penalty="mult")
        assert np.all(np.sign(update) == sign)
    at_price = theory.pg_expected_update(0.3, -1, 9, 4, alpha=price, penalty="mult")
    np.testing.assert_allclose(at_price, 0, atol=1e-15)
    # Long answers so rarely right that a price saves them less than the short ones.
    found = theory.alpha_critical(5, "mult", [0.1, 0.05, 0.3], 0.5)
    assert np.isnan(found).tolist() == [True, True, False]
    assert found[2] == pytest.approx(-1.0)  # they shorten at every price >= 0


def test_alpha_critical_values():
    np.testing.assert_allclose(
        theory.alpha_critical([5, 8, 16, 50]),
        [0.625, 0.571429, 0.533333, 0.510204],
        atol=PRINTED,
    )
    np.testing.assert_allclose(
        theory.alpha_critical([5, 16], "mult"), [0.555556, 0.516129], atol=PRINTED
    )
    # A leap of 4 makes long answers of 4 tokens; a skill of 0.6 lowers the stakes.
    assert theory.alpha_critical(16, long_len=4) == pytest.approx(16 / 6)
    assert theory.alpha_critical(16, f_short=0.6) == pytest.approx(0.4 * 16 / 15)


def test_any_price_at_all_costs_standardised_groups_some_drive():
    """Pairs, which only see who is better, lose all of it at once."""
    for G, alpha, expected in [(2, 0.9, 0.0), (3, 0.01, 0.025666), (8, 0.01, 0.072580)]:
        free = theory.pg_expected_update(*start(0.1), 16, G, "grpo")
        cheap = theory.pg_expected_update(*start(0.1), 16, G, "grpo", alpha=alpha)
        assert cheap[1] == pytest.approx(expected, abs=PRINTED)
        assert free[1] > cheap[1] + 0.003


def test_price_slows_then_reverses_the_drift():
    """P(long) after 400 Dr. GRPO steps at learning rate 1; a sampled run gave these."""
    for alpha, expected in [(0.5, 0.682), (8 / 15, 0.263), (0.56, 0.098)]:
        logits = np.array(start(0.25))
        for _ in range(400):
            logits += theory.pg_expected_update(*logits, 16, 8, "dr", alpha=alpha)
        P = expit(logits[0]) * expit(logits[1])
        assert expected == pytest.approx(P, abs=0.02)


@pytest.mark.parametrize(
    "p, mu, mv, delta",
    [
        (0.01, 1, 1, 0.5),
        (0.1, 1, 2, 0.25),
        (0.25, 3, 1, lambda P: token_cost(16, P) / 2),
    ],
    ids=["rare", "linear-model", "sequence-mean"],
)
def test_flow_time_and_crossing_match_the_integrated_flow(p, mu, mv, delta):
    def flow(_, logits):
        P = expit(logits).prod()
        drive = delta(P) if callable(delta) else delta
        return drive * np.array([mu, mv]) * long_gradient(*logits)

    def crossing(_, logits):
        return logits[1]

    crossing.terminal = True
    path = solve_ivp(flow, (0, 1e4), start(p), events=crossing, rtol=1e-11, atol=1e-12)
    time = theory.pg_flow_time(p, delta, mu, mv)
    assert path.t_events[0][0] == pytest.approx(time, rel=1e-8)
    np.testing.assert_allclose(
        path.y_events[0][0], theory.pg_crossing_state(p, mu, mv), atol=1e-8
    )
    conserved = np.array([mv, -mu]) @ (path.y + np.exp(path.y))
    np.testing.assert_allclose(conserved, conserved[0], rtol=1e-8)
    assert np.ptp(path.y, axis=1).min() > 0.4  # the flow went somewhere


def test_flow_values():
    times = [
        theory.pg_flow_time(0.1),
        theory.pg_flow_time(0.25, mv=2),
        theory.pg_flow_time(0.1, lambda P: token_cost(16, P) / 2),
        theory.pg_flow_time(0.1, lambda P: 1 / (2 * (2 + 15 * P))),
    ]
    expected = [23.079323, 2.569551, 166.006184, 114.614301]
    np.testing.assert_allclose(times, expected, atol=PRINTED, rtol=0)
    crossings = [theory.pg_crossing_state(p)[0] for p in (0.1, 0.25)]
    np.testing.assert_allclose(crossings, [0.996355, 0.765729], atol=PRINTED, rtol=0)


def test_flow_time_limits_and_bounds():
    rare = np.e * (expn(1, 1) + 2 * expn(2, 1) + expn(3, 1))
    assert rare == pytest.approx(1.701826, abs=PRINTED)
    assert theory.pg_flow_time(1e-10) * 1e-10 == pytest.approx(rare, rel=1e-8)
    assert theory.pg_flow_time(1 / 3) == theory.pg_flow_time(0.9) == 0
    for p in (1e-3, 0.1, 0.3):
        c0 = 2 * p / (1 - p)
        scale = 1 / c0 - c0 - 2 * np.log(c0)
        assert 2 * scale <= theory.pg_flow_time(p) <= 4 * scale / (1 + p)


@pytest.mark.parametrize("norm, expected", [("const", (53, 116)), ("seq", (283, 614))])
def test_num_updates_values(norm, expected):
    counts = [
        theory.pg_num_updates(0.25, 0.05, 16, adv=adv, G=8, eps=1e-4, norm=norm)
        for adv in ("grpo", "dr")
    ]
    assert tuple(counts) == expected


@pytest.mark.parametrize("p, lr, mv", [(0.05, 0.4, 1.0), (0.2, 0.1, 2.0)])
def test_num_updates_follow_the_flow(p, lr, mv):
    num_updates = theory.pg_num_updates(p, lr, 16, mv=mv, G=2)
    assert abs(num_updates * lr - theory.pg_flow_time(p, mv=mv)) <= 2 * lr


def test_num_updates_edges():
    assert theory.pg_num_updates(0.34, 0.1, 16, G=2) == 0
    assert theory.pg_num_updates(1 / 3, 0.1, 16, G=2, max_updates=1) == 1
    assert theory.pg_num_updates(1 / 3, 0.1, 16, G=2, max_updates=0) is None
    shortens = {"G": 2, "norm": "seq"}  # no baseline
    assert theory.pg_num_updates(0.3, 1.0, 16, max_updates=50, **shortens) is None


def test_updates_that_move_the_gate_alike():
    """As many as of a natural gradient: v grows by eta / 2 each time."""
    for p, eta in ((0.01, 0.1), (0.25, 0.3)):
        v, n = start(p)[1], 0
        while v <= 0:
            v, n = v + eta / 2, n + 1
        assert 0 <= n - theory.updates_in_log_odds(p, eta / 2) <= 1
    assert theory.updates_in_log_odds(0.4) == 0
