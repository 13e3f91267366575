"""Policy gradient on two logits: printed values, brute force, closed forms, flow."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import expit, expn
from scipy.stats import binom

from parity_jax import theory

PRINTED = 0.51e-6  # half a unit of the sixth digit
PRINTED_8 = 0.51e-8  # half a unit of the eighth digit
NORMS = ("const", "token", "seq", "token_group")

GRPO_8 = {
    0.1: [
        (0.04189810, 0.07617836),
        (0.01197089, 0.02176525),
        (0.00431304, 0.00784189),
        (0.00892406, 0.01622556),
    ],
    0.25: [
        (0.08890429, 0.14224686),
        (0.01546161, 0.02473858),
        (0.01503528, 0.02405645),
        (0.01446044, 0.02313670),
    ],
}
DR_8 = [
    (0.01968750, 0.03579545),
    (0.00562500, 0.01022727),
    (0.00202665, 0.00368483),
    (0.00419964, 0.00763571),
]
OFF_CURVE = [
    ({"adv": "grpo", "G": 8}, (0.06280881, 0.11387067)),
    (
        {"adv": "grpo", "G": 8, "norm": "seq", "eps": 1e-4, "ddof": 1},
        (0.00900050, 0.01380499),
    ),
    ({"adv": "grpo", "G": 4, "norm": "seq", "alpha": 0.3}, (0.00295252, 0.00391743)),
    ({"G": 4, "alpha": 0.3}, (0.01382549, 0.02677127)),
    ({"G": 4, "alpha": 0.3, "norm": "seq"}, (-0.01260559, -0.02440910)),
]
FLOW_TIMES = {
    0.01: 189.871610,
    0.05: 44.719590,
    0.1: 23.079323,
    0.2: 8.934384,
    0.25: 5.032339,
    0.3: 1.868714,
}
ESTIMATORS = [
    {"adv": "grpo", "G": 8, "eps": 1e-4},
    {"adv": "dr", "G": 8},
    {"G": 8, "baseline": "mean"},
]
NUM_UPDATES = [  # p, norm: GRPO, Dr. GRPO, REINFORCE with its mean baseline
    (0.1, "const", (247, 528, 462)),
    (0.1, "token", (1224, 2620, 2293)),
    (0.1, "seq", (1774, 3796, 3321)),
    (0.25, "const", (53, 116, 101)),
    (0.25, "token", (338, 737, 645)),
    (0.25, "seq", (283, 614, 537)),
]


def start(p: float) -> tuple[float, float]:
    return np.log((1 + p) / (1 - p)), np.log(2 * p / (1 - p))


def token_cost(d: int) -> Callable[[float], float]:
    """kappa(P) of 1/length weights, EOS counted."""
    return lambda P: (1 - P) / (d + 1) + P / 2


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


@pytest.mark.parametrize("p", GRPO_8)
def test_grpo_values(p):
    updates = [theory.pg_expected_update(*start(p), 16, 8, "grpo", n) for n in NORMS]
    np.testing.assert_allclose(updates, GRPO_8[p], atol=PRINTED_8, rtol=0)


def test_dr_grpo_values():
    updates = [theory.pg_expected_update(*start(0.1), 16, 8, "dr", n) for n in NORMS]
    np.testing.assert_allclose(updates, DR_8, atol=PRINTED_8, rtol=0)


@pytest.mark.parametrize("estimator, expected", OFF_CURVE)
def test_off_curve_values(estimator, expected):
    update = theory.pg_expected_update(0.5, -1.0, 16, **estimator)
    np.testing.assert_allclose(update, expected, atol=PRINTED_8, rtol=0)


def test_gradient_values_and_differences():
    np.testing.assert_allclose(
        theory.pg_grad(*start(0.1)), (0.022500, 0.040909), atol=PRINTED
    )
    np.testing.assert_allclose(
        theory.pg_grad(*start(0.25)), (0.046875, 0.075000), atol=PRINTED
    )
    u, v, h = np.array([0.3, -1.0]), np.array([-2.0, 0.7]), 1e-6
    finite = [
        (theory.pg_reward(u + h, v) - theory.pg_reward(u - h, v)) / (2 * h),
        (theory.pg_reward(u, v + h) - theory.pg_reward(u, v - h)) / (2 * h),
    ]
    np.testing.assert_allclose(theory.pg_grad(u, v), finite, atol=1e-9)
    assert theory.pg_reward(*start(0.3)) == pytest.approx(0.65)


def test_grpo_gain_values():
    gains = [theory.grpo_gain(0.55, G) for G in (2, 4, 8, 16, None)]
    expected = [1, 1.617186, 1.862138, 1.943070, 2.010076]
    np.testing.assert_allclose(gains, expected, atol=PRINTED, rtol=0)
    eps, ddof = theory.grpo_gain(0.55, 8, eps=1e-4), theory.grpo_gain(0.55, 8, ddof=1)
    np.testing.assert_allclose([eps, ddof], [1.861738, 1.741870], atol=PRINTED, rtol=0)


def test_grpo_gain_symmetry_and_limit():
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


@pytest.mark.parametrize("s, G, ddof", [(0.3, 2, 0), (0.55, 8, 1), (0.9, 5, 0)])
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
@pytest.mark.parametrize(
    "estimator",
    [
        {"adv": "reinforce", "baseline": 0.3},
        {"adv": "dr", "alpha": 0.4},
        {"adv": "grpo"},
        {"adv": "grpo", "eps": 0.05, "ddof": 1, "alpha": 0.2},
        {"adv": "grpo", "eps": 1e-4, "alpha": 0.3, "penalty": "mult"},
    ],
    ids=str,
)
@pytest.mark.parametrize("u, v, G", [(0.5, -1.0, 2), (-0.7, 0.4, 3), (1.5, -2.5, 4)])
def test_update_is_the_mean_over_every_group(u, v, G, estimator, norm):
    update = theory.pg_expected_update(u, v, 7, G, norm=norm, **estimator)
    expected = brute_force_update(u, v, 7, G, norm=norm, **estimator)
    np.testing.assert_allclose(update, expected, atol=1e-15)


@pytest.mark.parametrize("adv", ["dr", "grpo"])
@pytest.mark.parametrize("G, eps, ddof", [(2, 0, 0), (4, 1e-2, 1), (8, 0, 0)])
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


@pytest.mark.parametrize("u, v", [(0.2, -2.2), (0.5, -1.0), (-1.0, 1.0)])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_update_is_delta_times_gradient(u, v, alpha):
    """Weights that ignore per-prompt statistics: E[weight score] = Delta grad P."""
    d, G = 12, 5
    P, grad_P = expit(u) * expit(v), 2 * theory.pg_grad(u, v)
    price = 1 - 2 * alpha * (d - 1) / d
    tokens, kappa = 2 + (d - 1) * P, token_cost(d)(P)
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
        np.testing.assert_allclose(update, delta * grad_P, atol=1e-15)


@pytest.mark.parametrize("norm", ["const", "seq", "token"])
def test_pairs_make_grpo_reinforce(norm):
    for u, v in [(0.2, -2.2), (0.5, -1.0), (-1.0, 1.0)]:
        grpo = theory.pg_expected_update(u, v, 16, 2, "grpo", norm)
        plain = theory.pg_expected_update(u, v, 16, 2, norm=norm, baseline="mean")
        np.testing.assert_allclose(grpo, plain, atol=1e-15)


def test_length_tokens_can_leave_out_eos():
    with_eos = theory.pg_expected_update(0.5, -1.0, 16, 4, norm="seq")
    assert with_eos[1] < 0  # no baseline: 1/length favours short answers
    without = theory.pg_expected_update(0.5, -1.0, 16, 4, norm="seq", Ls=1, Ll=16)
    delta = 1 / 16 - 1 / 2
    np.testing.assert_allclose(without, 2 * delta * theory.pg_grad(0.5, -1.0))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("ddof", [0, 1])
def test_no_drive_at_the_critical_price(norm, ddof):
    rng = np.random.default_rng(4)
    for _ in range(4):
        (u, v), d, G = rng.normal(size=2), rng.integers(3, 40), rng.integers(3, 9)
        price = theory.alpha_critical(d)

        def update(alpha: float, u=u, v=v, d=d, G=G) -> np.ndarray:
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


def test_standardised_pairs_do_not_see_any_price():
    for alpha in (0.01, 0.3, 0.9):
        update = theory.pg_expected_update(0.2, -2.0, 16, 2, "grpo", alpha=alpha)
        np.testing.assert_allclose(update, 0, atol=1e-15)


@pytest.mark.parametrize(
    "G, free, cheap",
    [(3, 0.057854, 0.025666), (4, 0.066158, 0.044902), (8, 0.076178, 0.072580)],
)
def test_any_price_at_all_costs_standardised_groups_some_drive(G, free, cheap):
    for alpha, expected in [(0.0, free), (0.01, cheap)]:
        update = theory.pg_expected_update(*start(0.1), 16, G, "grpo", alpha=alpha)
        assert update[1] == pytest.approx(expected, abs=PRINTED)


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


@pytest.mark.parametrize("p, expected", FLOW_TIMES.items())
def test_flow_time_values(p, expected):
    assert theory.pg_flow_time(p) == pytest.approx(expected, abs=PRINTED)


@pytest.mark.parametrize(
    "p, options, expected",
    [
        (0.1, {"mv": 2}, 12.226171),
        (0.25, {"mv": 2}, 2.569551),
        (0.1, {"delta": lambda P: token_cost(8)(P) / 2}, 125.647489),
        (0.1, {"delta": lambda P: token_cost(16)(P) / 2}, 166.006184),
        (0.1, {"delta": lambda P: token_cost(50)(P) / 2}, 221.687433),
        (0.25, {"delta": lambda P: token_cost(16)(P) / 2}, 26.818608),
        (0.1, {"delta": lambda P: 1 / (2 * (2 + 15 * P))}, 114.614301),
        (0.25, {"delta": lambda P: 1 / (2 * (2 + 15 * P))}, 32.228631),
    ],
)
def test_flow_time_of_other_estimators(p, options, expected):
    assert theory.pg_flow_time(p, **options) == pytest.approx(expected, abs=PRINTED)


def test_flow_time_limits_and_bounds():
    rare = np.e * (expn(1, 1) + 2 * expn(2, 1) + expn(3, 1))
    assert rare == pytest.approx(1.701826, abs=PRINTED)
    assert theory.pg_flow_time(1e-10) * 1e-10 == pytest.approx(rare, rel=1e-8)
    assert theory.pg_flow_time(1 / 3) == theory.pg_flow_time(0.9) == 0
    assert theory.pg_flow_time(0.1, delta=0.25) == pytest.approx(
        2 * theory.pg_flow_time(0.1)
    )
    for p in (1e-3, 0.1, 0.3):
        c0 = 2 * p / (1 - p)
        scale = 1 / c0 - c0 - 2 * np.log(c0)
        assert 2 * scale <= theory.pg_flow_time(p) <= 4 * scale / (1 + p)


@pytest.mark.parametrize("p, mu, mv", [(0.01, 1, 1), (0.1, 1, 2), (0.25, 3, 1)])
def test_flow_time_and_crossing_match_the_integrated_flow(p, mu, mv):
    def flow(_, logits):
        return np.array([mu, mv]) * theory.pg_grad(*logits)

    def crossing(_, logits):
        return logits[1]

    crossing.terminal = True
    path = solve_ivp(flow, (0, 1e4), start(p), events=crossing, rtol=1e-11, atol=1e-12)
    time = theory.pg_flow_time(p, mu=mu, mv=mv)
    assert path.t_events[0][0] == pytest.approx(time, rel=1e-8)
    np.testing.assert_allclose(
        path.y_events[0][0], theory.pg_crossing_state(p, mu, mv), atol=1e-8
    )
    conserved = np.array([mv, -mu]) @ (path.y + np.exp(path.y))
    np.testing.assert_allclose(conserved, conserved[0], rtol=1e-8)
    assert np.ptp(path.y, axis=1).min() > 0.4  # the flow went somewhere


def test_crossing_values():
    crossings = [theory.pg_crossing_state(p)[0] for p in (0.1, 0.25)]
    np.testing.assert_allclose(crossings, [0.996355, 0.765729], atol=PRINTED, rtol=0)


@pytest.mark.parametrize("p, norm, expected", NUM_UPDATES)
def test_num_updates_values(p, norm, expected):
    counts = [
        theory.pg_num_updates(p, 0.05, 16, norm=norm, **estimator)
        for estimator in ESTIMATORS
    ]
    assert tuple(counts) == expected


@pytest.mark.parametrize("p", [0.05, 0.2, 0.3])
@pytest.mark.parametrize("lr", [0.1, 0.4])
def test_num_updates_follow_the_flow(p, lr):
    for mv in (1.0, 2.0):
        num_updates = theory.pg_num_updates(p, lr, 16, mv=mv, G=2)
        assert abs(num_updates * lr - theory.pg_flow_time(p, mv=mv)) <= 2 * lr


def test_num_updates_edges():
    assert theory.pg_num_updates(0.34, 0.1, 16, G=2) == 0
    assert theory.pg_num_updates(1 / 3, 0.1, 16, G=2) == 1
    shortens = {"G": 2, "norm": "seq"}  # no baseline
    assert theory.pg_num_updates(0.3, 1.0, 16, max_updates=50, **shortens) is None


def test_price_slows_then_reverses_the_drift():
    """P(long) after 400 Dr. GRPO steps at learning rate 1; a sampled run gave these."""
    for alpha, expected in [(0.5, 0.682), (8 / 15, 0.263), (0.56, 0.098)]:
        logits = np.array(start(0.25))
        for _ in range(400):
            logits += theory.pg_expected_update(*logits, 16, 8, "dr", alpha=alpha)
        P = expit(logits[0]) * expit(logits[1])
        assert expected == pytest.approx(P, abs=0.02)


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: theory.grpo_gain(1.0, 4), r"s must lie in \(0, 1\), got 1"),
        (lambda: theory.grpo_gain(0.5, 1), "G must be an integer >= 2, got 1"),
        (lambda: theory.grpo_gain(0.5, 4, eps=-1e-3), r"eps must lie in \[0, inf\)"),
        (lambda: theory.grpo_gain(0.5, 4, ddof=2), "ddof must be 0 or 1, got 2"),
        (lambda: theory.pg_expected_update(0, 0, 2, 4), "d must be an integer >= 3"),
        (lambda: theory.pg_expected_update(0, 0, 8, 1), "G must be an integer >= 2"),
        (lambda: theory.pg_expected_update(0, 0, 8, 4, "ppo"), "adv must be one of"),
        (
            lambda: theory.pg_expected_update(0, 0, 8, 4, norm="mean"),
            "norm must be one of const, seq, token, token_group, got 'mean'",
        ),
        (
            lambda: theory.pg_expected_update(0, 0, 8, 4, penalty="sub"),
            "penalty must be one of add, mult",
        ),
        (lambda: theory.pg_expected_update(0, 0, 8, 4, Ls=0), "token count must"),
        (lambda: theory.pg_flow_time(0.1, delta=0.0), r"delta must lie in \(0, inf\)"),
        (lambda: theory.pg_flow_time(0.1, delta=lambda P: P - 0.2), "delta must"),
        (lambda: theory.pg_flow_time(0.0), "p must"),
        (lambda: theory.pg_crossing_state(0.5), r"p must lie in \(0, 0\.333333\)"),
        (lambda: theory.pg_num_updates(0.1, 0.0, 16, G=2), "lr must"),
        (lambda: theory.alpha_critical(2), "d must be an integer >= 3"),
        (lambda: theory.alpha_critical(8, "sub"), "penalty must be one of add, mult"),
        (lambda: theory.alpha_critical(8, f_long=1.1), r"f_long must lie in \[0, 1\]"),
    ],
)
def test_domain_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()
