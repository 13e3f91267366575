"""When to start RL, and from what: checkpoint x p_cot, with p_cot = 0 (C8, C11).

Command    parity-jax run --config=experiments/c8_c11_timing.py \
               --workdir=runs/c8_c11_timing [--config.scale=paper]
Device     2 CPU cores, about 12 minutes; paper scale: one GPU
Expected   GRPO from a checkpoint at which the chain is learned generalises; from one
           before, answers may grow but stay wrong; at p_cot = 0.01 the length grows
           from almost every checkpoint; at p_cot = 0 nothing is there to be amplified
Figure     the paper's maps over pre-training checkpoint and p_cot (its d = 50)
"""

from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from flax.core import FrozenDict
from lab import SMALL, choose, solved
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from parity_jax.analysis import Check, Claim, Results, first_step, last
from parity_jax.analysis.diagnosis import Share, judge, nonzero, time_of
from parity_jax.analysis.plots import INK, SKY
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import TransformerConfig, mistral
from parity_jax.stages import PolicyGradientConfig, PretrainConfig, RolloutConfig
from parity_jax.tasks import ParityConfig
from parity_jax.theory import majority_at_k, pass_at_k

RARE, FREQUENT = 0.01, 0.25
NUM_PROMPTS, NUM_SAMPLES = 256, 4  # of an evaluation
NUM_GENERATIONS = 8  # of GRPO
# Of the gate's logit in an update: the headline run is long after 5, at time 2.6 of the
# theory's flow. With it a diagnosis says how many updates it takes from elsewhere.
GATE_RATE = 0.5
# From white to a colour on which dark text still has a contrast of 6; grey: no value.
LIGHT = LinearSegmentedColormap.from_list("light", ("white", SKY)).with_extremes(
    bad="#dddddd"
)


class Scale(NamedTuple):
    """What a scale sets; the defaults are the CPU's."""

    num_bits: int = 16
    model: TransformerConfig = SMALL
    batch_size: int = 64
    checkpoints: tuple[int, ...] = (50, 150, 400, 1200, 4800)  # from which RL starts
    p_cot: tuple[float, ...] = (0.0, RARE, 0.05, FREQUENT)
    num_prompts: int = 32  # of an update
    num_updates: int = 40
    seeds: tuple[int, ...] = (0, 1)


PAPER = Scale(
    num_bits=50,
    model=mistral(2, 128),
    batch_size=256,
    checkpoints=(200, 600, 2000, 6000, 20_000, 50_000),
    p_cot=(0.0, RARE, 0.05, 0.1, FREQUENT),
    num_prompts=64,
    num_updates=150,
    seeds=(0, 1, 2),
)
SCALES = {"cpu": Scale(), "paper": PAPER}


def get_config(scale: str = "cpu") -> Experiment:
    size = choose(SCALES, scale)
    first, *_, end = size.checkpoints
    pretrain = RunConfig(
        stage=PretrainConfig(size.batch_size),  # all checkpoints alike
        hypers=Hypers(learning_rate=1e-3),
        num_steps=end,
        log_every=first,
        eval_every=end // 4,
        checkpoint_steps=size.checkpoints,
    )
    rollout = RolloutConfig(
        num_prompts=size.num_prompts, num_generations=NUM_GENERATIONS
    )
    grpo = RunConfig(
        stage=PolicyGradientConfig(rollout=rollout, loss_type="dapo"),
        hypers=Hypers(learning_rate=2e-4),
        num_steps=size.num_updates,
        log_every=5,
        eval_every=size.num_updates // 8,
        parent="pretrain",
        axes=FrozenDict({"parent_step": size.checkpoints}),
    )
    return Experiment(
        task=ParityConfig(num_bits=size.num_bits),
        model=size.model,
        axes=FrozenDict({"p_cot": size.p_cot, "seed": size.seeds}),
        runs=FrozenDict({"pretrain": pretrain, "grpo": grpo}),
        evaluate=EvaluateConfig(NUM_PROMPTS, (1.0,), NUM_SAMPLES),
    )


def claims(results: Results) -> list[Claim]:
    """What RL makes of the last and the first checkpoint, of rare chains, of none."""
    before, after = results["grpo"].isel(step=0, drop=True), last(results["grpo"])
    growth = after["greedy/length_mean"] - before["greedy/length_mean"]
    is_grown = growth.sel(p_cot=RARE).mean("seed", skipna=False) > 0.5
    num_bits = results.experiment.task.num_bits
    chain_known = {"p_cot": [FREQUENT], "parent_step": after["parent_step"][-1:]}
    scores = {
        "accuracy": after["greedy/accuracy"],
        "length": after["greedy/length_mean"],
        "accuracy of long samples before RL": before["t1/accuracy_long"],
        "P(long) before RL": before["t1/p_long"],
        "P(continue) before RL, exact": 1 - before["t1/p_stop_begun"],
    }
    frequent, rare, none = (
        {name: values.sel(p_cot=[p_cot]) for name, values in scores.items()}
        for p_cot in (FREQUENT, RARE, 0)
    )
    early = {name: values.isel(parent_step=[0]) for name, values in frequent.items()}
    stopped = {"checkpoints without growth by 0.5": Check.at_most((~is_grown).sum(), 1)}
    return [
        Claim.of("C8", **solved(after.sel(chain_known), num_bits)),
        Claim.of("C8-early", seen=early, accuracy=Check.below(early["accuracy"], 0.9)),
        Claim.of("C8-rare", seen=rare, **stopped),
        Claim.of("C11", seen=none, accuracy=Check.within(none["accuracy"], 0.5, 0.1)),
        Claim.of(
            "C2-votes",
            **votes(before.sel(chain_known), "before"),
            **votes(after.sel(chain_known), "after"),
        ),
        diagnosed(results, num_bits),
    ]


def diagnosed(results: Results, num_bits: int) -> Claim:
    """Whether greedy decoding turns long within these updates, foretold and seen."""
    scores = results["grpo"]
    foretold = updates_foretold(scores.isel(step=0, drop=True))
    is_long = scores["greedy/length_mean"] > num_bits / 2
    turned = first_step(is_long)
    end = int(scores["step"][-1])
    agree = (foretold <= end) == is_long.isel(step=-1, drop=True)
    agree = agree.where(last(scores)["greedy/length_mean"].notnull())
    finite = foretold.where(np.isfinite(foretold))
    seen = {"updates foretold": finite, "updates seen": turned}
    return Claim.of(
        "C8-diagnosis",
        seen=seen,
        agreement=Check.at_least(agree.mean(skipna=False), 0.9),
    )


def updates_foretold(scores: xr.Dataset) -> xr.DataArray:
    """Updates of GRPO until greedy decoding is long, by `parity-jax diagnose`.

    From what the checkpoint's samples say; infinite where there is nothing to amplify.
    """

    def updates(greedy: float, p_long: float, long: float, short: float) -> float:
        if not np.isfinite([greedy, p_long]).all():
            return np.nan
        num = NUM_PROMPTS * NUM_SAMPLES
        num_long = round(num * p_long)
        p = Share.of(p_long, num)
        kinds = Share.of(long, num_long), Share.of(short, num - num_long)
        verdict, _ = judge({"p_long": greedy, "accuracy": np.nan}, p, *kinds)
        if np.isnan([kind.value for kind in kinds if kind.count]).any():
            return np.nan
        if verdict in ("long", "nothing"):
            return 0.0 if verdict == "long" else np.inf
        rates = (nonzero(kind) for kind in kinds)
        return time_of("grpo", NUM_GENERATIONS, p_long, *rates, False) / GATE_RATE

    names = ("greedy/p_long", "t1/p_long", "t1/accuracy_long", "t1/accuracy_short")
    return xr.apply_ufunc(
        updates,
        *(scores[name] for name in names),
        vectorize=True,
        output_dtypes=[float],
    )


def votes(scores: xr.Dataset, when: str) -> dict[str, Check]:
    """pass@4 and maj@4 at temperature 1 are the ideal policy's with this P(long)."""
    p_long, checks = scores["t1/p_long"], {}
    # the closed forms are for 0 < p < 1; NaN stays NaN
    inside = p_long.clip(1e-6, 1 - 1e-6).fillna(0.5)
    for name, function in (("pass@4", pass_at_k), ("maj@4", majority_at_k)):
        predicted = xr.apply_ufunc(function, inside, 4).where(p_long.notnull())
        checks[f"{name} {when}"] = Check.within(scores[f"t1/{name}"], predicted, 0.05)
    return checks


def figure(results: Results) -> plt.Figure:
    """Maps over checkpoint and p_cot, two before RL and two after it."""
    before, after = results["grpo"].isel(step=0, drop=True), last(results["grpo"])
    num_bits = results.experiment.task.num_bits
    p_long, right = before["t1/p_long"], before["t1/accuracy_long"]
    length = after["greedy/length_mean"] / num_bits
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.8), sharey=True, layout="tight")
    # grey: under 0.5% of samples
    draw_map(axes[0], right.where(p_long >= 0.005), "long samples right, before RL")
    draw_map(axes[1], p_long, "P(long) at temperature 1, before RL")
    draw_map(axes[2], after["greedy/accuracy"], "greedy accuracy after RL")
    draw_map(axes[3], length, f"greedy length after RL / {num_bits}")
    axes[0].set_ylabel("p_cot")
    updates = int(results["grpo"]["step"][-1])
    figure.suptitle(
        f"{updates} updates of GRPO from checkpoints of next-token prediction, "
        f"parity of {num_bits} bits; each cell: lowest - highest seed"
    )
    return figure


def draw_map(ax: Axes, values: xr.DataArray, title: str) -> None:
    """Mean over seeds as colour, their range as text; grey where there is none."""
    values = values.transpose("p_cot", "parent_step", "seed")
    mean = values.mean("seed")
    ax.imshow(mean, LIGHT, aspect="auto", vmin=0, vmax=1, origin="lower")
    for i, j in np.argwhere(mean.notnull().values):
        text = f"{float(values[i, j].min()):.2f} - {float(values[i, j].max()):.2f}"
        ax.text(j, i, text, ha="center", va="center", fontsize=7.5, color=INK)
    ax.set_xticks(range(mean.sizes["parent_step"]), mean["parent_step"].values)
    ax.set_yticks(range(mean.sizes["p_cot"]), [f"{p:g}" for p in mean["p_cot"].values])
    ax.set_xlabel("pre-training step that RL starts from")
    ax.set_title(title, loc="left", fontsize=9)
