"""Policy gradient on the linear model: updates to greedy long, and the price of length.

Command    parity-jax run --config=experiments/linear_policy_gradient.py \
               --workdir=runs/linear_policy_gradient
Device     2 CPU cores, about 5 minutes
Expected   plain SGD on each objective needs as many updates until greedy decoding is
           long as the reduced two-logit model (`theory.pg_num_updates`, mv = 2: bias
           and weight of the gate move alike); REINFORCE without baseline but with
           1/|y| shortens answers; answers lengthen only while a full chain costs less
           than alpha_c = d / (2 (d - 1)).
Figure     beyond the paper, whose objectives these are (learning rates are ours)
"""

from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from lab import critical_price, finish, linear_pretrain, p_long_growth

from parity_jax import theory
from parity_jax.analysis import Check, Claim, Results, first_step
from parity_jax.analysis.overlays import overlay
from parity_jax.analysis.plots import CYCLE, INK, dots, draw_members, label_line
from parity_jax.config import label_text
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import LinearConfig
from parity_jax.optim import OptimizerConfig
from parity_jax.population import PopulationConfig
from parity_jax.stages import PolicyGradientConfig, RolloutConfig
from parity_jax.tasks import ParityConfig

NUM_BITS, GROUP, STD_EPS = 16, 8, 1e-4
P_COT = (0.1, 0.25)
PRICES = (0.0, 0.3, 0.45, 0.5, 0.56, 0.6, 0.7)
MAX_UPDATES = 75
PRICED_UPDATES = 60  # under a price of length

# baseline and scale_rewards of an objective, and the same for theory.pg_num_updates;
# likewise its loss_type.
PLAIN, BATCH = ("none", "none"), ("batch", "none")
DR, STD = ("group", "none"), ("group", "group")
ADVANTAGE: dict[tuple[str, str], dict[str, Any]] = {
    PLAIN: {},
    BATCH: dict(baseline="mean"),
    DR: dict(adv="dr"),
    STD: dict(adv="grpo", eps=STD_EPS),
}
NORM = {"reinforce": "const", "grpo": "seq", "bnpo": "token", "dr_grpo": "const"}


class Estimator(NamedTuple):
    """An objective, and a learning rate that takes about 45 updates."""

    label: str
    learning_rate: float  # of the sum over tokens divided as `theory` says
    advantage: tuple[str, str]
    loss_type: str

    def predicted_updates(self, p_cot: float) -> int | None:
        """Those of the reduced model; None if greedy decoding does not get long."""
        words: dict[str, Any] = dict(mv=2.0, max_updates=MAX_UPDATES, G=GROUP)
        words |= ADVANTAGE[self.advantage] | dict(norm=NORM[self.loss_type])
        return theory.pg_num_updates(p_cot, self.learning_rate, NUM_BITS, **words)

    def run(
        self, rate: float, num_steps: int, eval_every: int, **axes: Any
    ) -> RunConfig:
        """Updates from the pre-trained model, at `rate` times the learning rate."""
        baseline, scale_rewards = self.advantage
        stage = PolicyGradientConfig(
            rollout=RolloutConfig(num_prompts=256, num_generations=GROUP),
            baseline=baseline,
            scale_rewards=scale_rewards,
            std_eps=STD_EPS,
            loss_type=self.loss_type,
            optimizer=OptimizerConfig("sgd"),
        )
        # the loss of Dr. GRPO divides by the T = d + 1 tokens of a response
        per_token = NUM_BITS + 1 if self.loss_type == "dr_grpo" else 1
        return RunConfig(
            stage=stage,
            hypers=Hypers(learning_rate=rate * self.learning_rate * per_token),
            num_steps=num_steps,
            log_every=eval_every,
            eval_every=eval_every,
            parent="pretrain",
            axes=FrozenDict(axes),
        )


ESTIMATORS = {
    "reinforce": Estimator("REINFORCE", 0.3, PLAIN, "reinforce"),
    "reinforce_seq": Estimator("REINFORCE, mean baseline, 1/|y|", 2.0, BATCH, "grpo"),
    "reinforce_seq_plain": Estimator(
        "REINFORCE, no baseline, 1/|y|", 2.0, PLAIN, "grpo"
    ),
    "grpo": Estimator("GRPO (1/|y|)", 1.0, STD, "grpo"),
    "grpo_const": Estimator("GRPO, no length norm.", 0.15, STD, "reinforce"),
    "grpo_token": Estimator("GRPO, token-level", 0.7, STD, "bnpo"),
    "dr_grpo": Estimator("Dr. GRPO", 0.3, DR, "dr_grpo"),
    "dr_grpo_seq": Estimator("Dr. GRPO with 1/|y|", 2.0, DR, "grpo"),
}
PRICED = ("dr_grpo", "grpo_const")


def get_config() -> Experiment:
    runs = {"pretrain": linear_pretrain(32, axes=FrozenDict({"p_cot": P_COT}))}
    for name, estimator in ESTIMATORS.items():
        runs[name] = estimator.run(1.0, MAX_UPDATES, 1, p_cot=P_COT)
    for name in PRICED:
        axes = {"length_price": PRICES, "p_cot": (0.25,)}
        run = ESTIMATORS[name].run(3.0, PRICED_UPDATES, PRICED_UPDATES, **axes)
        runs[f"price_{name}"] = run
    return Experiment(
        task=ParityConfig(NUM_BITS),
        model=LinearConfig(),
        axes=FrozenDict({"seed": (0, 1, 2)}),
        runs=FrozenDict(runs),
        evaluate=EvaluateConfig(num_prompts=512, temperatures=(1.0,)),
        population=PopulationConfig(vmap_width=4),
    )


def updates_to_long(run: xr.Dataset) -> xr.DataArray:
    """First update after which greedy decoding is long on most inputs.

    NaN if it never is, infinite for a member that diverged.
    """
    p_long = run["greedy/p_long"]
    is_there = p_long.isel(step=-1, drop=True).notnull()
    return first_step(p_long > 0.5).where(is_there, np.inf)


def check_updates(updates: xr.DataArray, target: int | None) -> Check:
    """Every seed needs as many, up to 2 or to 10%, whichever is more."""
    if target is None:  # never, on no seed
        return Check.equal(int(updates.count()), 0)
    return Check.within(updates, target, max(2, 0.1 * target))


def claims(results: Results) -> list[Claim]:
    """The reduced model's updates, the estimator that shortens, the critical price."""
    never, checks = {}, {}
    for name, estimator in ESTIMATORS.items():
        for p in P_COT:
            label = f"{name}, {label_text({'p_cot': p})}"
            found = updates_to_long(results[name]).sel(p_cot=p)
            target = estimator.predicted_updates(p)
            checks[label] = check_updates(found, target)
            if target is None:
                never[f"{label}, of each seed"] = found
    alpha_c = float(theory.alpha_critical(NUM_BITS))
    prices = {name: critical_price(results[f"price_{name}"]) for name in PRICED}
    drive = p_long_growth(results["reinforce_seq_plain"])
    return [
        Claim.of("PG-updates", seen=never, **checks),
        Claim.of("PG-shortens", growth=Check.below(drive, 0)),
        Claim.of(
            "PG-price", **{k: Check.within(v, alpha_c, 0.03) for k, v in prices.items()}
        ),
    ]


def figure(results: Results) -> plt.Figure:
    """Updates of every estimator, growth of some, and the price that stops it."""
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(12, 3.8), layout="constrained", width_ratios=(1.3, 1, 1)
    )
    draw_updates(left, results)
    shown = ("reinforce", "grpo", "dr_grpo", "reinforce_seq_plain")
    for color, name in zip(CYCLE, shown, strict=False):
        p_long = results[name]["t1/p_long"].sel(p_cot=0.25)
        draw_members(middle, p_long, color, ESTIMATORS[name].label)
    title, ylabel = "Growth from p_cot = 0.25", "P(long) at temperature 1"
    finish(middle, title, "update", ylabel, ncols=2, ylim=(0, 1))
    for color, name in zip(CYCLE, PRICED, strict=False):
        drive = p_long_growth(results[f"price_{name}"]).isel(p_cot=0)
        price, label = drive["length_price"], ESTIMATORS[name].label
        dots(right, price, drive, color, ms=4)
        right.plot(price, drive.median("seed"), color=color, label=label)
    alpha_c = float(theory.alpha_critical(NUM_BITS))
    overlay(right, [alpha_c] * 2, [-0.3, 0.6], "d / (2 (d - 1)): right chains")
    right.axhline(0, color=INK, lw=0.6)
    label_line(right, 0, 0.03, "lengthens", INK)
    label_line(right, 0, -0.03, "shortens", INK)
    title, xlabel = "Price of length, p_cot = 0.25", "price of a full chain (alpha)"
    finish(right, title, xlabel, f"change of P(long), {PRICED_UPDATES} updates")
    return figure


def draw_updates(ax: plt.Axes, results: Results) -> None:
    """A row for each estimator: a dot for each seed, a dash for the theory."""
    for i, (name, estimator) in enumerate(ESTIMATORS.items()):
        updates = updates_to_long(results[name])
        for color, p in zip(CYCLE, P_COT, strict=False):
            found, target = updates.sel(p_cot=p), estimator.predicted_updates(p)
            ax.plot(found, [i] * found.size, "o", color=color, ms=5, alpha=0.6)
            if target is not None:
                ax.plot([target] * 2, [i - 0.35, i + 0.35], "--", color=color, lw=1.4)
        if updates.isnull().all():
            ax.text(1, i, "never: it shortens", va="center", fontsize=8, color=INK)
    for color, p in zip(CYCLE, P_COT, strict=False):
        ax.plot([], [], "o", color=color, label=f"p_cot = {p:g}")
    ax.plot([], [], "--", color=INK, label="theory (expected updates, exact chain)")
    ax.set_yticks(range(len(ESTIMATORS)), [e.label for e in ESTIMATORS.values()])
    ax.invert_yaxis()
    xlabel = "updates until greedy decoding is long"
    title = f"Updates to greedy long, d = {NUM_BITS}"
    finish(ax, title, xlabel, "", xlim=(0, MAX_UPDATES))
