"""Whether reinforcement has anything to amplify in a policy, before it is started.

Samples at temperature 1 are split into long ones (they show their work) and short ones.
Reinforcement of right answers makes the long ones more frequent if they are right more
often; it solves the task that way if they are right nearly always. How long that takes
is the theory's (`theory.amplification`), for answers that stay as right as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from parity_jax.analysis.kinds import kinds_of_length
from parity_jax.decode import sample
from parity_jax.evaluate import success_tables
from parity_jax.models import Model
from parity_jax.responses import num_tokens
from parity_jax.tasks import Task
from parity_jax.theory import (
    first_token_flow_time,
    grpo_gain,
    majority_at_k_of,
    pass_at_k_of,
    pg_flow_time,
    star_rounds_to,
    star_share,
)
from parity_jax.types import Key, Params, Prompt

Z = 1.96  # of an interval of 95%
SOLVED = 0.9  # long answers that are right this often solve the task
SURE = 0.99  # share of samples whose first token has to tell the kind
ROUNDS = 8  # of STaR that are drawn

Verdict = Literal["long", "solve", "lengthen", "nothing"]
Estimator = Literal["grpo", "dr_grpo", "reinforce"]
ESTIMATORS: tuple[Estimator, ...] = ("grpo", "dr_grpo", "reinforce")


class Samples(NamedTuple):
    """Answers to B prompts: the greedy one, then K samples at temperature 1."""

    first: np.ndarray  # BxG, first token; G = 1 + K
    is_long: np.ndarray  # BxG
    right: np.ndarray  # BxG
    length: np.ndarray  # BxG, tokens before the end


@dataclass(frozen=True)
class Share:
    """A share of `count` samples with an interval of 95%."""

    value: float  # NaN if the count is 0
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, value: float, count: int, effective: float | None = None) -> "Share":
        """Wilson's interval of a share of independent samples.

        effective   the number of them that vary as much, where they are not
        """
        if count == 0:
            return cls(np.nan, 0.0, 1.0, 0)
        n = count if effective is None else effective
        centre = (value + Z**2 / (2 * n)) / (1 + Z**2 / n)
        half = np.sqrt(value * (1 - value) / n + (Z / (2 * n)) ** 2)
        half *= Z / (1 + Z**2 / n)
        low, high = float(centre - half), float(centre + half)
        low, high = min(low, value), max(high, value)  # which rounding may have crossed
        return cls(float(value), max(0.0, low), min(1.0, high), count)


@dataclass(frozen=True)
class Diagnosis:
    """What was measured, what the theory makes of it, and the verdict."""

    num_prompts: int
    num_samples: int  # of each prompt, at temperature 1
    p_long: Share
    accuracy_long: Share
    accuracy_short: Share
    length_long: float | None  # median, tokens
    length_short: float | None
    greedy: dict[str, float]  # accuracy, p_long, length (mean)
    # Of samples of both kinds; else none.
    first_token_tells: bool | None
    threshold: float | None  # of P(long), above which greedy decoding is long
    success: dict[str, tuple[float, float]]  # pass@k, maj@k: measured, predicted
    # Of those that can grow; else none.
    star_shares: list[float]  # P(long) after 0, 1, .. rounds
    star_rounds: int | None  # until greedy decoding is long
    estimator: Estimator
    flow_time: float | None  # updates until then x learning rate of the gate's logit
    verdict: Verdict
    sentence: str
    doubt: float | None  # see `kinds`, of those told apart by length; else None


def draw_samples(
    key: Key,
    task: Task,
    model: Model,
    members: Sequence[Params],
    prompt: Prompt,
    num_samples: int,
) -> list[Samples]:
    """Answers of every member to the same prompts, by one program."""
    temperature_G = jnp.array([0.0] + [1.0] * num_samples)

    @jax.jit
    def answers(params: Params, prompt: Prompt, data: Any) -> tuple[Array, ...]:
        token = sample(key, model, params, prompt, temperature_G, task.format).token
        right = task.rewards["e2e"](prompt, token, data) > 0
        length = num_tokens(token, task.format)
        return token[..., 0], task.is_long(token), right, length

    return [
        Samples(*map(np.asarray, answers(params, prompt, task.data)))
        for params in members
    ]


def diagnose(
    samples: Samples,
    estimator: Estimator,
    num_generations: int,
    is_by_length: bool = False,
) -> Diagnosis:
    """The diagnosis of these answers; `num_generations` is the group of the estimator.

    Intervals count prompts, not samples, as far as the answers to one agree. Long
    answers are those that the task takes for long, or the longer of two kinds.
    """
    doubt = None
    if is_by_length:
        kinds = kinds_of_length(samples.length)
        samples, doubt = samples._replace(is_long=kinds.is_long), kinds.doubt
    greedy = Samples(*(x[:, 0] for x in samples))
    drawn = Samples(*(x[:, 1:] for x in samples))
    is_long, right = drawn.is_long.astype(bool), drawn.right.astype(bool)
    num_prompts, num_samples = is_long.shape
    ones_B = np.full(num_prompts, num_samples)
    p_long = share_of(is_long.sum(1), ones_B)
    long = share_of((right & is_long).sum(1), is_long.sum(1))
    short = share_of((right & ~is_long).sum(1), (~is_long).sum(1))
    greedy_scores = {
        "accuracy": float(greedy.right.mean()),
        "p_long": float(greedy.is_long.mean()),
        "length": float(greedy.length.mean()),
    }
    verdict, sentence = judge(greedy_scores, p_long, long, short)
    p, star_shares, star_rounds, flow_time = p_long.value, [], None, None
    tells, threshold = None, None
    if long.count and short.count:
        tells = first_token_tells(drawn)
        threshold = 1 / 2 if tells else 1 / 3
    if threshold is not None and verdict in ("solve", "lengthen"):
        rates = (nonzero(long), nonzero(short))
        star_shares = [float(star_share(p, n, *rates)) for n in range(ROUNDS + 1)]
        star_rounds = int(star_rounds_to(threshold, p, *rates))
        flow_time = time_of(estimator, num_generations, p, *rates, bool(tells))
    return Diagnosis(
        num_prompts,
        num_samples,
        p_long,
        long,
        short,
        median_of(drawn.length[is_long]),
        median_of(drawn.length[~is_long]),
        greedy_scores,
        tells,
        threshold,
        success_of(right),
        star_shares,
        star_rounds,
        estimator,
        flow_time,
        verdict,
        sentence,
        doubt,
    )


def judge(
    greedy: Mapping[str, float], p_long: Share, long: Share, short: Share
) -> tuple[Verdict, str]:
    """What reinforcement of right answers will do, and why, in a sentence."""
    rates = f"answers that show their work are right on {shown(long)}"
    rates += f", short ones on {shown(short)}" if short.count else ""
    if greedy["p_long"] > 1 / 2:
        return "long", (
            "Greedy decoding shows its work already, on "
            f"{percent(greedy['p_long'])} of the prompts, and is right on "
            f"{percent(greedy['accuracy'])}."
        )
    if long.count == 0:
        return "nothing", (
            f"RL has nothing to amplify: none of {p_long.count} samples shows its work "
            f"(P(long) below {p_long.high:.2g})."
        )
    if not short.count or long.low <= short.high:
        overlap = short.count and short.low <= long.high
        told = ", as far as these samples tell" * bool(overlap)
        return "nothing", f"RL has nothing to amplify{told}: {rates}."
    if long.value >= SOLVED:
        return "solve", f"RL will lengthen and solve: {rates}."
    return "lengthen", (
        f"RL will lengthen without solving, unless the work is learned on the way: "
        f"{rates}."
    )


def percent(share: float) -> str:
    """A share, which 1 would tell as a count."""
    return f"{100 * share:.3g}%"


def share_of(number_B: np.ndarray, count_B: np.ndarray) -> Share:
    """The share sum(number) / sum(count), with Wilson's interval.

    The samples of a prompt may agree: the count in the interval is the one at which
    independent samples would vary as much as the prompts do (a ratio estimate, by
    linearisation), and the number of prompts where they do not vary.
    """
    count = int(count_B.sum())
    if count == 0:
        return Share.of(np.nan, 0)
    value = number_B.sum() / count
    num_prompts = int((count_B > 0).sum())
    effective = float(num_prompts)
    if num_prompts > 1:
        deviation_B = number_B - value * count_B
        spread = num_prompts / (num_prompts - 1) * (deviation_B**2).sum() / count**2
        if spread > 0:
            effective = min(float(count), value * (1 - value) / spread)
    return Share.of(value, count, effective)


def nonzero(share: Share) -> float:
    """The share; half a sample where it is 0, since rates divide."""
    return max(share.value, 0.5 / share.count)


def first_token_tells(drawn: Samples) -> bool:
    """Whether long and short samples begin with different tokens (but 1% of them)."""
    first, is_long = drawn.first.ravel(), drawn.is_long.ravel().astype(bool)
    tokens, index = np.unique(first, return_inverse=True)
    num_long = np.bincount(index, is_long, len(tokens))
    num_short = np.bincount(index, ~is_long, len(tokens))
    rarer = np.minimum(num_long, num_short).sum()
    return bool(rarer <= (1 - SURE) * min(is_long.sum(), (~is_long).sum()))


def time_of(
    estimator: Estimator,
    num_generations: int,
    p: float,
    f_long: float,
    f_short: float,
    first_token_tells: bool,
) -> float:
    """Time of gradient flow until greedy decoding is long, with a constant norm.

    The advantage of a long answer over a short one is f_long - f_short (REINFORCE),
    less what the group's mean has of itself (Dr. GRPO), over the group's standard
    deviation (GRPO).
    """

    def drive(p_now: float) -> float:
        gap, rate = f_long - f_short, f_short + (f_long - f_short) * p_now
        if estimator == "reinforce":
            return gap
        if estimator == "dr_grpo":
            return gap * (1 - 1 / num_generations)
        return gap * float(grpo_gain(rate, num_generations))

    flow_time = first_token_flow_time if first_token_tells else pg_flow_time
    return float(flow_time(p, drive))


def success_of(right_BxK: np.ndarray) -> dict[str, tuple[float, float]]:
    """pass@k and maj@k, and what they are if no prompt is harder than another."""
    num_samples, success = right_BxK.shape[1], {}
    predicted = {"pass": pass_at_k_of, "maj": majority_at_k_of}
    for name, table in success_tables(num_samples).items():
        kind, k = name.split("@")
        measured = float(table[right_BxK.sum(1)].mean())
        success[name] = (measured, float(predicted[kind](right_BxK.mean(), int(k))))
    return success


def median_of(values: np.ndarray) -> float | None:
    """The median; None of no numbers."""
    return float(np.median(values)) if values.size else None


def shown(share: Share) -> str:
    """A share and its interval as text."""
    if not share.count:
        return "no sample"
    return f"{share.value:.3g} ({share.low:.3g} to {share.high:.3g})"
