"""What several experiments share: scales, the CPU's small model, greedy decoding."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from scipy.special import expit, logit

from parity_jax.analysis import Check
from parity_jax.analysis.overlays import overlay_star
from parity_jax.analysis.plots import (
    CYCLE,
    draw_members,
    end_of,
    label_line,
    legend_below,
)
from parity_jax.config import unknown_value
from parity_jax.experiment import RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import mistral
from parity_jax.stages import LinearPretrainConfig, SgdConfig
from parity_jax.theory import star_p

T = TypeVar("T")

SMALL = mistral(2, 64, num_heads=4, num_kv_heads=2)  # learns d = 16 in minutes

# The paper's SGD made fast: batches, tamed first steps, late iterates that weigh more.
FAST_SGD = SgdConfig(64, max_step_size=0.2, max_chain_step_size=2.0, average_power=3)


def choose(scales: Mapping[str, T], scale: str) -> T:
    """The sizes of a scale; ConfigError names the scales there are."""
    if scale not in scales:
        raise unknown_value("scale", scale, scales)
    return scales[scale]


def solved(scores: xr.Dataset, length: int, prefix: str = "") -> dict[str, Check]:
    """Greedy decoding has this length and is right on 99% of the prompts."""
    return {
        f"{prefix}accuracy": Check.at_least(scores["greedy/accuracy"], 0.99),
        f"{prefix}length": Check.equal(scores["greedy/length_median"], length),
    }


def stuck(scores: xr.Dataset, prefix: str = "") -> dict[str, Check]:
    """Greedy decoding is short and within 0.1 of chance."""
    return {
        f"{prefix}accuracy": Check.within(scores["greedy/accuracy"], 0.5, 0.1),
        f"{prefix}length": Check.equal(scores["greedy/length_median"], 1),
    }


def draw_greedy(
    ax: Axes,
    x: xr.DataArray,
    scores: xr.Dataset,
    num_bits: int,
    color: str,
    label: str = "",
) -> None:
    """Greedy accuracy over x (solid), and the mean length over the bits (dotted)."""
    draw_members(ax, scores["greedy/accuracy"], color, label, x)
    draw_members(ax, scores["greedy/length_mean"] / num_bits, color, x=x, ls=":")


def all_at_most(values: Mapping[str, xr.DataArray], bound: float) -> dict[str, Check]:
    """The largest number of every array is at most the bound, and none is NaN."""
    largest = {name: each.max(skipna=False) for name, each in values.items()}
    return {name: Check.at_most(number, bound) for name, number in largest.items()}


def p_long_growth(run: xr.Dataset) -> xr.DataArray:
    """Growth of P(long) at temperature 1 over the run."""
    p_long = run["t1/p_long"]
    return p_long.isel(step=-1, drop=True) - p_long.isel(step=0, drop=True)


def first_zero(growth: xr.DataArray, axis: str) -> xr.DataArray:
    """Where growth over an axis first falls below 0, interpolated, or NaN."""
    at = growth[axis].values

    def zero(growth: np.ndarray) -> float:
        i = int(np.argmax(growth < 0))
        if i == 0 or np.isnan(growth[:i]).any():  # all of it is negative, or nothing
            return np.nan
        share = growth[i - 1] / (growth[i - 1] - growth[i])
        return at[i - 1] + share * (at[i] - at[i - 1])

    return xr.apply_ufunc(zero, growth, input_core_dims=[[axis]], vectorize=True)


def critical_price(run: xr.Dataset) -> xr.DataArray:
    """The price of length at which P(long) starts to shrink, interpolated, or NaN."""
    return first_zero(p_long_growth(run), "length_price")


def gate_crossing(
    end: xr.Dataset,
    eps_2: xr.DataArray | float = 0.0,
    score: str = "t1/p_stop_begun",
) -> xr.DataArray:
    """p_cot where EOS and the likelier next token are equally likely, for every seed.

    The odds of their probabilities are linear in ln(2p / (1 - p)) in theory; a line is
    fitted to the members of a seed. Those are no independent measurements: who is long
    is a uniform number below p_cot, the same for all of them. eps_2: the share of the
    other token among those that go on. score: what tells P(EOS) after a right token.
    """
    x = np.log(2 * end["p_cot"] / (1 - end["p_cot"]))
    likelier = np.maximum(eps_2, 1 - eps_2)  # a step that is not learned is a coin
    gate = np.log(likelier) - logit(end[score])
    slope = xr.cov(x, gate, "p_cot") / x.var(ddof=1)
    return expit(x.mean() - gate.mean("p_cot", skipna=False) / slope - np.log(2))


def draw_star_map(rounds: Axes, over: Axes, p_long: xr.DataArray) -> None:
    """P(long) over the rounds of STaR, and after a round over before it, by theory."""
    num_rounds = int(p_long["step"][-1])
    for p_cot, color in zip(p_long["p_cot"].values, CYCLE, strict=False):
        share = p_long.sel(p_cot=p_cot)
        draw_members(rounds, share, color, marker="o", ms=3)
        overlay_star(rounds, p_cot, num_rounds, color=color)
        label_line(rounds, num_rounds, end_of(share), f"p_cot = {p_cot:g}", color)
        before = share.shift(step=1).values.ravel()
        over.plot(before, share.values.ravel(), "o", ms=4, color=color, alpha=0.7)
    rounds.set(xlabel="STaR round", ylabel="P(long) at temperature 1", ylim=(0, 1))
    rounds.set_title("dashed: 2ⁿp / (1 + (2ⁿ - 1)p)", loc="left", fontsize=9)
    p = np.linspace(0.01, 0.99, 99)
    over.plot(p, star_p(p, 1), "k--", lw=1)
    over.plot(p, p, color="0.8", lw=1)
    over.set(xlabel="P(long) before a round", ylabel="after it", xlim=(0, 1))
    title = "one dot per round and seed; dashed: 2p / (1 + p)"
    over.set_title(title, loc="left", fontsize=9)


def star_gap(p_long: xr.DataArray) -> xr.DataArray:
    """The largest gap, over the rounds of STaR, of P(long) to 2p / (1 + p).

    NaN where a round has none.
    """
    before = p_long.isel(step=slice(None, -1)).values
    after = p_long.isel(step=slice(1, None))
    return abs(after - 2 * before / (1 + before)).max("step", skipna=False)


def greedy_crossing(end: xr.Dataset) -> xr.DataArray:
    """p_cot where half of the greedy answers are long, interpolated, for every seed."""
    return first_zero(0.5 - end["greedy/p_long"], "p_cot")


def finish(
    ax: Axes,
    title: str,
    xlabel: str,
    ylabel: str,
    num: int | None = None,
    ncols: int = 1,
    **look: Any,
) -> None:
    """The words around a panel; num and ncols of its legend, look of Axes.set."""
    ax.set_title(title, loc="left")
    ax.set(xlabel=xlabel, ylabel=ylabel, **look)
    legend_below(ax, num, ncols)


def linear_pretrain(
    num_steps: int, sgd: SgdConfig = FAST_SGD, **rest: Any
) -> RunConfig:
    """Next-token prediction of the linear model, 500 updates a step, scored at its end.

    rest   fields of RunConfig
    """
    stage = LinearPretrainConfig(sgd, num_updates=500)
    schedule = dict.fromkeys(("num_steps", "log_every", "eval_every"), num_steps)
    return RunConfig(stage=stage, hypers=Hypers(ridge=1e-5), **schedule | rest)
