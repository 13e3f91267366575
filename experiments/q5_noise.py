"""What noise in demonstrations and rewards does to both stages (Q5).

Command    parity-jax run --config=experiments/q5_noise.py --workdir=runs/q5_noise
Device     2 CPU cores, 20 minutes beside other work
Expected   flipped chain tokens (probability q) move the greedy threshold of a
           transformer to 1 / (1 + 2 (1 - q) (1 - eps_2)), eps_2 = q, and not to the
           linear model's 1 / (3 - 2q); wrong short answers do not move it; with
           propagating flips sampled accuracy is (1 + p_cot (1 - 2q)^(d - 1)) / 2, the
           chain's reward shortens answers where q > 1 - 2^(-1 / (d - 2)), and STaR
           follows its exact recursion; rewards that err (false positives f, false
           negatives g) scale the gradient by 1 - f - g: RL stops at f + g = 1
Figure     beyond the paper (open question 5 of its reviews); all sizes are ours
"""

from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from lab import SMALL, finish, first_zero, gate_crossing, p_long_growth
from matplotlib.axes import Axes

from parity_jax import theory
from parity_jax.analysis import Answer, Check, Claim, Results, last
from parity_jax.analysis.overlays import overlay
from parity_jax.analysis.plots import ACCENT, BLUE, CYCLE, INK, dots, label_line
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.optim import OptimizerConfig
from parity_jax.stages import (
    PretrainConfig,
    RolloutConfig,
    StarConfig,
    dr_grpo,
)
from parity_jax.tasks import ParityConfig

NUM_BITS, P_RL = 10, 0.25  # RL starts from the models of this p_cot
P_COT = (P_RL, 0.34, 0.42)
NOISE = {"step": (0.0, 0.04, 0.07, 0.1, 0.16), "emit": (0.1, 0.2), "short": (0.2, 0.4)}
ERRORS = (0.0, 0.3, 0.6, 0.9)  # false positives and false negatives of the reward
REWARDS = ("e2e", "cot")
NUM_ROUNDS = 2  # of STaR


def get_config() -> Experiment:
    num_steps = 800
    pretrain = RunConfig(
        stage=PretrainConfig(64, OptimizerConfig(decay_steps=num_steps)),
        hypers=Hypers(learning_rate=1e-3),
        num_steps=num_steps,
        log_every=num_steps // 8,
        eval_every=num_steps // 2,
    )
    runs = {}
    for kind, values in NOISE.items():
        axes: dict[str, Any] = {f"{kind}_noise": values, "p_cot": P_COT}
        runs[kind] = replace(pretrain, axes=FrozenDict(axes))
    rollout = RolloutConfig(num_prompts=32, num_generations=8)
    single = RolloutConfig(num_prompts=3072, num_generations=1)
    updates = RunConfig(
        stage=dr_grpo(rollout=rollout),
        hypers=Hypers(p_cot=P_RL, learning_rate=1e-4),
        num_steps=20,
        log_every=20,
        eval_every=20,
        parent="step",
        axes=FrozenDict({"step_noise": NOISE["step"]}),
    )
    rounds = replace(
        updates, num_steps=NUM_ROUNDS, eval_every=1, hypers=Hypers(learning_rate=3e-4)
    )
    for reward in REWARDS:
        stage = dr_grpo(rollout=replace(rollout, rewards=(reward,)))
        runs[f"grpo_{reward}"] = replace(updates, stage=stage)
        samples = replace(single, rewards=(reward,))
        star = StarConfig(samples, batch_size=128, num_epochs=3, decay=True)
        runs[f"star_{reward}"] = replace(rounds, stage=star)
    errors: dict[str, Any] = {"false_positive": ERRORS, "false_negative": ERRORS}
    runs["errors"] = replace(
        updates, num_steps=30, eval_every=30, axes=FrozenDict(errors)
    )
    star = StarConfig(single, batch_size=128, num_epochs=3, decay=True)
    errors = {"false_positive": ERRORS, "false_negative": ERRORS[:2]}
    runs["errors_star"] = replace(
        rounds, stage=star, num_steps=1, axes=FrozenDict(errors)
    )
    return Experiment(
        task=ParityConfig(NUM_BITS),
        model=SMALL,
        axes=FrozenDict({"seed": (0, 1)}),
        runs=FrozenDict(runs),
        evaluate=EvaluateConfig(1024, (1.0,), num_samples=4),
    )


def thresholds(results: Results, kind: str) -> tuple[xr.DataArray, xr.DataArray]:
    """p_cot at which greedy decoding goes long under a noise q; measured, in theory.

    The decision is between EOS and the likelier of the two next tokens.
    """
    end = last(results[kind]).rename({f"{kind}_noise": "q"})
    crossing = gate_crossing(end, end["t1/eps_2"])
    q = end["q"] if kind != "short" else 0 * end["q"]
    return crossing, xr.apply_ufunc(lambda q: theory.greedy_threshold(q, q), q)


def step_accuracy(results: Results) -> tuple[xr.DataArray, xr.DataArray]:
    """Accuracy at temperature 1 under propagating flips; measured, in theory."""
    end, d = last(results["step"]), results.experiment.task.num_bits
    predicted = xr.apply_ufunc(
        lambda p, q: theory.noisy_accuracy(p, d, q, "step"),
        end["p_cot"],
        end["step_noise"],
    )
    return end["t1/accuracy"], predicted


def star_path(q: float, d: int, reward: str) -> list[float]:
    """P(long) before and after every round of STaR in theory, from D(P_RL)."""
    state, path = theory.pretrain_state(P_RL, d, "step", q), []
    for _ in range(NUM_ROUNDS + 1):
        p_long = state.A * state.C_plus + (1 - state.A) * state.C_minus
        path.append(float(p_long))
        state, _ = theory.star_state_step(theory.fit_logits(state), 1.0, reward)
    return path


def star_paths(results: Results, reward: str) -> tuple[xr.DataArray, xr.DataArray]:
    """P(long) over the rounds by q; measured, in theory."""
    p_long, d = results[f"star_{reward}"]["t1/p_long"], results.experiment.task.num_bits
    paths = [star_path(q, d, reward) for q in p_long["step_noise"].values.tolist()]
    coords = {"step_noise": p_long["step_noise"], "step": p_long["step"]}
    return p_long, xr.DataArray(paths, coords)


def erring_star(results: Results) -> tuple[xr.DataArray, xr.DataArray]:
    """P(long) after one round whose reward errs; measured, in theory."""
    p_long = last(results["errors_star"])["t1/p_long"]

    def share(false_positive: float, false_negative: float) -> float:
        rates = (theory.seen_rate(f, false_positive, false_negative) for f in (1, 0.5))
        return float(theory.star_share(P_RL, 1, *rates))

    errors = (p_long["false_positive"], p_long["false_negative"])
    return p_long, xr.apply_ufunc(share, *errors, vectorize=True)


def gate_growth(run: xr.Dataset) -> xr.DataArray:
    """Growth of P(go on) after a right first token, exact from the logits."""
    p_stop = run["t1/p_stop_begun"]
    return p_stop.isel(step=0, drop=True) - p_stop.isel(step=-1, drop=True)


def turning_noise(results: Results) -> xr.DataArray:
    """Step noise from which the chain's reward shortens answers, for every seed."""
    return first_zero(gate_growth(results["grpo_cot"]), "step_noise")


def reward_growth(results: Results) -> tuple[xr.DataArray, xr.DataArray]:
    """Growth of P(long) under rewards that err, and what they leave of the gradient."""
    growth = p_long_growth(results["errors"])
    return growth, 1 - growth["false_positive"] - growth["false_negative"]


def claims(results: Results) -> list[Claim]:
    """Thresholds, accuracy, both kinds of RL after noise, and rewards that err."""
    seen, checks = {}, {}
    for kind in NOISE:
        crossing, predicted = thresholds(results, kind)
        seen[f"{kind}, of each seed"] = crossing
        checks[kind] = Check.within(
            crossing.mean("seed", skipna=False), predicted, 0.03
        )
    accuracy, expected = step_accuracy(results)
    critical = float(theory.critical_step_noise(results.experiment.task.num_bits))
    growth = {reward: gate_growth(results[f"grpo_{reward}"]) for reward in REWARDS}
    star = {}
    for reward in REWARDS:
        p_long, path = star_paths(results, reward)
        star[reward] = Check.within(p_long.mean("seed", skipna=False), path, 0.06)
    lengthens, signal = reward_growth(results)
    least = lengthens.where(signal > 0.15, np.inf)  # of none: refused
    most = lengthens.where(signal < -0.15, -np.inf)
    kept, share = erring_star(results)
    return [
        Claim.of("Q5", seen=seen, **checks),
        Claim.within(
            "Q5-accuracy", accuracy.mean("seed", skipna=False), expected, 0.03
        ),
        Claim.of(
            "Q5-shortens",
            seen={"growth": growth["cot"], "of each seed": turning_noise(results)},
            turns=Check.within(
                turning_noise(results).mean(skipna=False), critical, 0.03
            ),
            e2e=Check.above(growth["e2e"], 0),
        ),
        Claim.of("Q5-star", **star),
        Claim.of(
            "Q5-reward",
            seen={"growth": lengthens},
            below=Check.above(least.min(skipna=False), 0),
            above=Check.below(most.max(skipna=False), 0),
        ),
        Claim.within("Q5-reward-star", kept.mean("seed", skipna=False), share, 0.06),
    ]


def answer(results: Results) -> Answer:
    """How the threshold moves, and what stops RL."""
    moved, _ = thresholds(results, "step")
    clean, noisy = (float(moved.isel(q=i).mean(skipna=False)) for i in (0, -1))
    turns = float(turning_noise(results).mean(skipna=False))
    critical = float(theory.critical_step_noise(results.experiment.task.num_bits))
    growth, signal = reward_growth(results)
    sides = growth.where(abs(signal) > 0.15)
    share = float(((sides > 0) == (signal > 0)).where(sides.notnull()).mean())
    return Answer(
        "What does noise in demonstrations and in rewards change?",
        f"Step noise of {float(moved['q'][-1]):g} moves the greedy threshold from "
        f"{clean:.2f} to {noisy:.2f}; the chain's reward shortens answers above "
        f"{turns:.3f} (theory {critical:.3f}); {share:.0%} of the members whose "
        "rewards' error rates add up to 1 give or take more than 0.15 lengthen iff it "
        "is less.",
    )


def figure(results: Results) -> plt.Figure:
    """Thresholds and accuracy over q; RL after noise; rewards that err."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 8), layout="constrained")
    draw_thresholds(axes[0, 0], results)
    draw_accuracy(axes[0, 1], results)
    draw_growth(axes[0, 2], results)
    draw_star(axes[1, 0], results)
    draw_errors(axes[1, 1], results)
    draw_errors_star(axes[1, 2], results)
    figure.suptitle(f"Noise, parity of {results.experiment.task.num_bits} bits")
    return figure


def draw_thresholds(ax: Axes, results: Results) -> None:
    """The greedy threshold over q, both formulas dashed."""
    for color, kind in zip(CYCLE, NOISE, strict=False):
        crossing, _ = thresholds(results, kind)
        dots(ax, crossing["q"], crossing, color, ms=5)
        ax.plot([], [], "o", color=color, label=f"{kind} noise")
    q = np.linspace(0, 0.25, 50)
    overlay(ax, q, theory.greedy_threshold(q, q), "softmax over EOS and both tokens")
    overlay(ax, q, theory.greedy_threshold(q), "linear model", "#aaaaaa")
    ax.axhline(1 / 3, color=INK, lw=0.6)
    finish(ax, "Greedy threshold", "noise q", "p_cot", ylim=(0.25, 0.5))


def draw_accuracy(ax: Axes, results: Results) -> None:
    """Accuracy at temperature 1 over p_cot, step noise by colour."""
    accuracy, _ = step_accuracy(results)
    d, p = results.experiment.task.num_bits, np.linspace(0.2, 0.45, 20)
    for color, at in zip(CYCLE, accuracy.transpose("step_noise", ...), strict=False):
        q = float(at["step_noise"])
        dots(ax, at["p_cot"], at, color, ms=5)
        overlay(ax, p, theory.noisy_accuracy(p, d, q, "step"), "exact steps", color)
        end = float(theory.noisy_accuracy(p[-1], d, q, "step"))
        label_line(ax, p[-1], end, f"q = {q:g}", color)
    title = "Propagating flips, sampled"
    finish(ax, title, "p_cot", "accuracy at temperature 1", num=1)


def draw_growth(ax: Axes, results: Results) -> None:
    """Growth of P(go on) in GRPO over the step noise of the demonstrations."""
    for color, reward in zip((BLUE, ACCENT), REWARDS, strict=True):
        growth = gate_growth(results[f"grpo_{reward}"])
        dots(ax, growth["step_noise"], growth, color, ms=5)
        mean = growth.median("seed")
        ax.plot(growth["step_noise"], mean, color=color, label=f"reward {reward}")
    critical = float(theory.critical_step_noise(results.experiment.task.num_bits))
    overlay(ax, [critical] * 2, [-0.3, 0.6], "cot turns at 1 - 2^(-1/(d - 2))")
    ax.axhline(0, color=INK, lw=0.6)
    title, ylabel = "Dr. GRPO after noisy demonstrations", "change of P(go on)"
    finish(ax, title, "step noise q", ylabel)


def draw_star(ax: Axes, results: Results) -> None:
    """P(long) after the last round over q, for both rewards."""
    for color, reward in zip((BLUE, ACCENT), REWARDS, strict=True):
        p_long, path = (x.isel(step=-1) for x in star_paths(results, reward))
        dots(ax, p_long["step_noise"], p_long, color, ms=5)
        ax.plot([], [], "o", color=color, label=f"reward {reward}")
        overlay(ax, path["step_noise"], path, "exact recursion", color)
    title, ylabel = f"STaR, {NUM_ROUNDS} rounds", "P(long) at temperature 1"
    finish(ax, title, "step noise q of demonstrations", ylabel, ylim=(0, 1))


def draw_errors(ax: Axes, results: Results) -> None:
    """Growth of P(long) over the sum of both error rates."""
    growth = p_long_growth(results["errors"])
    total = growth["false_positive"] + growth["false_negative"]
    for color, at in zip(CYCLE, growth.transpose("false_positive", ...), strict=False):
        x = total.sel(false_positive=at["false_positive"])
        dots(ax, x, at, color, ms=5, alpha=0.8)
        label = f"false positives {float(at['false_positive']):g}"
        ax.plot([], [], "o", color=color, label=label)
    overlay(ax, [1, 1], [-0.3, 0.6], "no signal: sum of both is 1")
    ax.axhline(0, color=INK, lw=0.6)
    xlabel = "false positives + false negatives"
    finish(ax, "Dr. GRPO with erring rewards", xlabel, "change of P(long)")


def draw_errors_star(ax: Axes, results: Results) -> None:
    """P(long) after a round of STaR over false positives."""
    p_long, share = erring_star(results)
    for color, at in zip(CYCLE, p_long.transpose("false_negative", ...), strict=False):
        g = float(at["false_negative"])
        dots(ax, at["false_positive"], at, color, ms=5)
        ax.plot([], [], "o", color=color, label=f"false negatives {g:g}")
        predicted = share.sel(false_negative=g)
        overlay(ax, predicted["false_positive"], predicted, "kept shares", color)
    ax.axhline(P_RL, color=INK, lw=0.6)
    title, ylabel = "STaR with erring rewards, 1 round", "P(long) at temperature 1"
    finish(ax, title, "false positives", ylabel, ylim=(0, 0.6))
