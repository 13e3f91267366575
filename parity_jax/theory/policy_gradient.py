"""Policy gradient on two logits: first token A = sg(u) and gate C = sg(v).

The policy is ideal otherwise (stops after a wrong first token, perfect chain), so an
answer is long (probability AC; always right), short with y_1 = x_1 (A(1-C)) or short
with y_1 != x_1 (1-A); the last two are right on complementary halves of the inputs.
Only the setting is the paper's; the flow and the estimators are derived here.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import expit, gammaln, wrightomega, xlogy
from scipy.stats import binom

from parity_jax.theory._checks import TIE, Float, in_range, integer, one_of
from parity_jax.theory.sampling import log_odds


def grpo_gain(s: Float, G: int | None = None, eps: float = 0.0, ddof: int = 0) -> Float:
    """Factor g by which GRPO scales the gradient of a prompt with success rate s.

    E[advantage * score] = g Cov(reward, score) for advantage = (r - mean)/(std + eps)
    over G samples: g = E[V/(sqrt(V) + eps)]/(s(1-s)), V = (K/G)(1-K/G), K ~ Bin(G, s),
    0 if V = 0; std^2 = V G/(G-ddof). G = None is the limit 1/(sqrt(s(1-s)) + eps).
    ValueError unless 0 < s < 1, G >= 2 is an integer, eps >= 0 and ddof is 0 or 1.
    """
    s, eps = in_range("s", s, 0, 1), in_range("eps", eps, 0, closed="left")
    if G is None:
        _group_size(2, ddof)  # in the limit every ddof is the same
        return 1 / (np.sqrt(s * (1 - s)) + eps)
    G, ddof = _group_size(G, ddof)
    successes = np.arange(1, G)
    variance = successes * (G - successes) / G**2
    gain = variance / (np.sqrt(variance * G / (G - ddof)) + eps)
    mass = binom.pmf(successes, G, np.expand_dims(s, -1))
    return (mass @ gain) / (s * (1 - s))


def pg_expected_update(
    u: float,
    v: float,
    d: int,
    G: int,
    adv: Literal["reinforce", "dr", "grpo"] = "reinforce",
    norm: Literal["const", "seq", "token", "token_group"] = "const",
    baseline: float | Literal["mean"] = 0.0,
    eps: float = 0.0,
    ddof: int = 0,
    alpha: float = 0.0,
    penalty: Literal["add", "mult"] = "add",
    Ls: int = 2,
    Ll: int | None = None,
) -> NDArray[np.float64]:
    """Expected ascent direction (du, dv), before the learning rate: an exact sum.

    Groups of G answers to one prompt. Advantage: r - baseline (reinforce; "mean" is the
    policy's expected reward), r - group mean (dr), that / (group std + eps) (grpo).
    Mean over the samples of advantage * score, times 1 (const), 1/length (seq),
    1/expected length (token, the large-batch limit) or 1/mean length of the group.
    Lengths are Ls and Ll tokens (d + 1 unless given). With alpha, r = correct - alpha
    |y|/d (add) or correct (1 - alpha |y|/d) (mult), |y| in {1, d}. ValueError for an
    unknown option, d < 3, G < 2, eps < 0, ddof not 0 or 1, or lengths < 1.
    """
    one_of("adv", adv, ("reinforce", "dr", "grpo"))
    G, ddof = _group_size(G, ddof)
    A, C = expit(u), expit(v)
    mass = np.array([A * C, A * expit(-v), expit(-u)])  # long, short right/wrong y_1
    scores = np.array([[1 - A, 1 - C], [1 - A, -C], [-A, 0.0]])
    rewards = _outcome_rewards(int(integer("d", d, 3)), alpha, penalty)
    level = rewards.mean(axis=0) @ mass if baseline == "mean" else baseline
    level, eps = in_range("baseline", level), in_range("eps", eps, 0, closed="left")
    counts, log_ways = _group_counts(G)
    group_prob = np.exp(log_ways + xlogy(counts, mass).sum(axis=1))
    lengths = integer("token count", [d + 1 if Ll is None else Ll, Ls, Ls], 1)
    share = counts / _denominator(counts, lengths, mass, norm)
    advantage = [_advantage(r, counts, adv, level, eps, ddof) for r in rewards]
    return group_prob @ (share * np.mean(advantage, axis=0)) @ scores


def pg_flow_time(
    p: float,
    delta: float | Callable[[float], float] = 0.5,
    mu: float = 1.0,
    mv: float = 1.0,
) -> float:
    """Time T at which gradient flow from D(p) first decodes long; ~ T/lr updates.

    The flow is u' = mu Delta A(1-A)C, v' = mv Delta AC(1-C) from u_0 = ln((1+p)/(1-p)),
    v_0 = ln(2p/(1-p)); `delta` is Delta, or a function of P(long). With F(z) = z + e^z
    mv F(u) - mu F(v) is conserved, which leaves one integral over v in [v_0, 0]. mv = 2
    for SGD on the linear model. For Delta = 1/2, T -> 1.7018/p as p -> 0; 0 if
    p >= 1/3. ValueError unless 0 < p < 1 and delta, mu, mv > 0.
    """
    u0, v0 = log_odds(p)
    mu, mv = in_range("mu", mu, 0), in_range("mv", mv, 0)
    if not callable(delta):
        in_range("delta", delta, 0)
    if v0 >= 0:
        return 0.0

    def slowness(x: float) -> float:  # dt/dx at x = e^-v
        first_odds = _first_odds(-np.log(x), u0, v0, mu / mv)
        P = first_odds / (1 + first_odds) / (1 + x)
        drive = in_range("delta", delta(P) if callable(delta) else delta, 0)
        return (1 + 1 / x) ** 2 * (1 + 1 / first_odds) / (mv * drive)

    return quad(slowness, 1.0, np.exp(-v0), epsabs=0.0, epsrel=1e-10, limit=500)[0]


def pg_crossing_state(
    p: float, mu: float = 1.0, mv: float = 1.0
) -> tuple[Float, float]:
    """Logits (u, 0) at which that flow crosses into greedy long, for any Delta > 0.

    u solves F(u) = F(u_0) + (mu/mv)(1 - F(v_0)) with F(z) = z + e^z.
    ValueError unless 0 < p < 1/3 and mu, mv > 0.
    """
    u0, v0 = log_odds(in_range("p", p, 0, 1 / 3))
    ratio = in_range("mu", mu, 0) / in_range("mv", mv, 0)
    return np.log(_first_odds(0.0, u0, v0, ratio)), 0.0


def pg_num_updates(
    p: float,
    lr: float,
    d: int,
    mu: float = 1.0,
    mv: float = 1.0,
    max_updates: int = 100_000,
    **estimator: Any,
) -> int | None:
    """First n with v_n > 0 (greedy long) under expected updates from D(p).

    u += lr mu du, v += lr mv dv with `estimator` the keywords (G and on) of
    `pg_expected_update`. 0 if p > 1/3, None if not within `max_updates`.
    ValueError unless 0 < p < 1 and lr, mu, mv > 0.
    """
    step = in_range("lr", lr, 0) * np.array(
        [in_range("mu", mu, 0), in_range("mv", mv, 0)]
    )
    logits = np.array(log_odds(p))
    for n in range(max_updates + 1):
        if logits[1] > TIE:
            return n
        logits += step * pg_expected_update(logits[0], logits[1], d, **estimator)
    return None


def updates_in_log_odds(p: Float, step: Float = 1.0) -> Float:
    """Updates ln((1-p)/(2p)) / step to greedy long if each adds a step to the gate.

    So do natural gradient (step lr/2) and sign-like steps, as Adam's (step about lr); 0
    if p >= 1/3. ValueError unless 0 < p < 1 and step > 0.
    """
    p = in_range("p", p, 0, 1)
    return np.maximum(np.log((1 - p) / (2 * p)), 0) / in_range("step", step, 0)


def alpha_critical(
    d: Float,
    penalty: Literal["add", "mult"] = "add",
    f_long: Float = 1.0,
    f_short: Float = 0.5,
    long_len: Float | None = None,
) -> Float:
    """Length price alpha at which the policy gradient stops lengthening answers.

    Success rates f_long and f_short, long answers of `long_len` (d unless given)
    tokens, short ones of 1: additive (f_long - f_short) d/(long_len - 1),
    multiplicative (f_long - f_short) d/(f_long long_len - f_short); NaN where
    f_long long_len <= f_short: there a higher price does not shorten them.
    ValueError unless d >= 3 and long_len >= 2 are integers and rates are in [0, 1].
    """
    one_of("penalty", penalty, ("add", "mult"))
    d = integer("d", d, 3)
    long_len = d if long_len is None else integer("long_len", long_len, 2)
    f_long = in_range("f_long", f_long, 0, 1, closed="both")
    f_short = in_range("f_short", f_short, 0, 1, closed="both")
    if penalty == "add":
        return (f_long - f_short) * d / (long_len - 1)
    saved = np.asarray(f_long * long_len - f_short)
    is_felt = saved > 0
    price = (f_long - f_short) * d / np.where(is_felt, saved, 1.0)
    return np.where(is_felt, price, np.nan)[()]


def _first_odds(v: Float, u0: Float, v0: Float, ratio: Float) -> Float:
    """A/(1-A) when the flow is at v: e^u with F(u) = F(u0) + ratio (F(v) - F(v0))."""
    progress = (v + np.exp(v)) - (v0 + np.exp(v0))
    return wrightomega(u0 + np.exp(u0) + ratio * progress)


def _group_size(G: int, ddof: int) -> tuple[int, int]:
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, got {ddof}")
    return int(integer("G", G, 2)), ddof


@lru_cache
def _group_counts(G: int) -> tuple[np.ndarray, np.ndarray]:
    """All outcome counts of a group, (n, 3), and their log multinomial coefficients."""
    counts = np.array(
        [(i, j, G - i - j) for i in range(G + 1) for j in range(G + 1 - i)]
    )
    return counts, gammaln(G + 1) - gammaln(counts + 1).sum(axis=1)


def _outcome_rewards(d: int, alpha: float, penalty: str) -> NDArray[np.float64]:
    """Reward of each outcome if the parity is x_1 and if it is not, shape (2, 3)."""
    one_of("penalty", penalty, ("add", "mult"))
    correct = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    price = in_range("alpha", alpha) * np.array([d, 1, 1]) / d
    return correct - price if penalty == "add" else correct * (1 - price)


def _advantage(
    rewards: np.ndarray,
    counts: np.ndarray,
    adv: str,
    baseline: float,
    eps: float,
    ddof: int,
) -> NDArray[np.float64]:
    """Advantage of each outcome in a group with those counts, shape (n, 3).

    Deviations from the group mean are sums of differences, exactly 0 without a signal.
    """
    if adv == "reinforce":
        return np.broadcast_to(rewards - baseline, counts.shape)
    G = counts[0].sum()
    deviation = counts @ (rewards - rewards[:, None]) / G
    if adv == "dr":
        return deviation
    std = np.sqrt((counts * deviation**2).sum(axis=1) / (G - ddof))
    scale = np.where(std > 0, std + eps, np.inf)
    return deviation / scale[:, None]


def _denominator(
    counts: np.ndarray, lengths: Float, mass: np.ndarray, norm: str
) -> Float:
    """What divides the advantages summed over a group, per outcome (or group)."""
    one_of("norm", norm, ("const", "seq", "token", "token_group"))
    G = counts[0].sum()
    if norm == "const":
        return G
    if norm == "seq":
        return G * lengths
    if norm == "token":
        return G * (lengths @ mass)
    return counts @ lengths[:, None]
