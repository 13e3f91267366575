"""Where the greedy threshold 1/3 moves: noise, mixtures with leaps, partial skill.

None of this is in the paper. All formulas are for tau = 1 and lam -> 0.
"""

import numpy as np
from scipy.stats import binom

from parity_jax.theory._checks import Float, in_range, integer, not_tied


def greedy_threshold(q: Float = 0.0, eps2: Float | None = None) -> Float:
    """Ratio p above which greedy decoding is long, if long demonstrations are noisy.

    They flip tokens 1..d-1 w.p. q. Two-stage gate (linear model): 1/(3-2q). With
    `eps2`, the error rate of chain step 2, one softmax over {EOS, +1, -1}
    (transformer): 1/(1 + 2(1-q)(1-eps2)).
    ValueError unless 0 <= q < 1/2 and 0 <= eps2 <= 1/2.
    """
    q = in_range("q", q, 0, 0.5, closed="left")
    if eps2 is None:
        return 1 / (3 - 2 * q)
    eps2 = in_range("eps2", eps2, 0, 0.5, closed="both")
    return 1 / (1 + 2 * (1 - q) * (1 - eps2))


def critical_step_noise(d: Float) -> Float:
    """Propagating flip probability 1 - 2^(-1/(d-2)) above which cot reward shortens.

    A chain is then right at less than half of its noisy steps 2..d-1, as a short answer
    is. ValueError unless d >= 3 is an integer.
    """
    return 1 - 2 ** (-1 / (integer("d", d, 3) - 2))


def seen_rate(rate: Float, false_positive: Float, false_negative: Float) -> Float:
    """Rate at which a reward that errs is seen as 1: f + (1 - f - g) rate.

    f false positives, g false negatives: differences of rates, and with them the
    expected policy gradient, shrink by 1 - f - g. ValueError unless all are in [0, 1].
    """
    rate = in_range("rate", rate, 0, 1, closed="both")
    f = in_range("false_positive", false_positive, 0, 1, closed="both")
    g = in_range("false_negative", false_negative, 0, 1, closed="both")
    return f + (1 - f - g) * rate


def pool_coverage(num_prompts: Float) -> Float:
    """P(a pool has a prompt whose parity is not x_1) = 1 - 2^-n, n independent prompts.

    On the others a short answer that begins with x_1 is right, and nothing pays for
    going on. ValueError unless n >= 1 is an integer.
    """
    return 1 - 0.5 ** integer("num_prompts", num_prompts, 1)


def shuffled_long(p: float, d: int) -> float:
    """Share of inputs that greedy decodes long if chains show bits in a random order.

    Blind coin (ours). Of the likelier first sign n of d bits have it; after it EOS has
    mass (1-p)/2 and the likelier next token p (n/d) max(n-1, d-n)/(d-1).
    ValueError unless 0 < p < 1 and d >= 3 is an integer.
    """
    p, d = in_range("p", p, 0, 1), int(integer("d", d, 3))
    plus = np.arange(d + 1)
    n = np.maximum(plus, d - plus)
    goes_on = p * (n / d) * np.maximum(n - 1, d - n) / (d - 1) > (1 - p) / 2
    return float(binom.pmf(plus, d, 0.5) @ goes_on)


def mixture_leap(p1: float, pk: float, k: int, d: int) -> dict[str, float | bool]:
    """Linear model (degree-1 features) on full, leap-k and short demonstrations.

    Shares p1, pk and 1-p1-pk; the leap chain shows t_k, t_2k, ..., t_d. With
    r = pk/(p1+pk) and M = d/k: A = (1+p1)/2, C_plus = (2 p1 + pk)/(1+p1),
    C_minus = pk/(1-p1), P(EOS after M) = r, accuracy = (1 + p1 (1-r)^M)/2. Greedy is
    the full chain iff 3 p1 + 2 pk > 1 and p1 > pk; `greedy_full` says so.
    ValueError unless p1 > 0, pk >= 0, p1+pk < 1 and k >= 3 divides d >= 2k, and where
    greedy ties.
    """
    p1, pk = in_range("p1", p1, 0, 1), in_range("pk", pk, 0, 1, closed="left")
    in_range("p1 + pk", p1 + pk, 0, 1)
    k = integer("k", k, 3)
    num_tokens = integer("d/k", d / k, 2)
    not_tied("3 p1 + 2 pk", 3 * p1 + 2 * pk, 1.0)
    not_tied("p1 - pk", p1 - pk, 0.0)
    r = pk / (p1 + pk)
    return {
        "A": (1 + p1) / 2,
        "C_plus": (2 * p1 + pk) / (1 + p1),
        "C_minus": pk / (1 - p1),
        "r": r,
        "accuracy": (1 + p1 * (1 - r) ** num_tokens) / 2,
        "greedy_full": bool(3 * p1 + 2 * pk > 1 and p1 > pk),
    }


def skill_thresholds(g: Float) -> tuple[Float, Float, Float, Float]:
    """Greedy thresholds (p_minus, p_plus, fail_lo, fail_hi) of a partly learned parity.

    Short answers are right w.p. g. Inputs with parity != x_1 go long iff p > p_minus =
    max((1-g)/(2-g), (2g-1)/(2g)), the others iff p > p_plus = g/(1+g). Greedy is wrong
    (on the former) iff fail_lo = (2g-1)/(2g) < p < fail_hi = (1-g)/(2-g); no such p
    exists for g >= 2/3. ValueError unless 1/2 <= g <= 1.
    """
    g = in_range("g", g, 0.5, 1, closed="both")
    fail_lo, fail_hi = (2 * g - 1) / (2 * g), (1 - g) / (2 - g)
    return np.maximum(fail_lo, fail_hi), g / (1 + g), fail_lo, fail_hi
