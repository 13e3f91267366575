"""The figure of a diagnosis: what was measured as marks, the theory dashed."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from parity_jax.analysis.diagnosis import Diagnosis, Share
from parity_jax.analysis.plots import CYCLE, GREY, legend_below


def draw_diagnosis(found: Mapping[str, Diagnosis]) -> plt.Figure:
    """Shares, success over k, and STaR, of members by their labels."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="tight")
    for n, (label, diagnosis) in enumerate(found.items()):
        color = CYCLE[n % len(CYCLE)]
        draw_shares(axes[0], diagnosis, color, (n + 1) / (len(found) + 1) - 0.5, label)
        draw_success(axes[1], diagnosis, color)
        draw_star(axes[2], diagnosis, color)
    axes[0].set_xticks(
        range(4), ["P(long)", "right if\nlong", "right if\nshort", "greedy"]
    )
    axes[0].set(ylim=(-0.03, 1.03), ylabel="share")
    axes[0].set_title("samples at temperature 1", loc="left")
    axes[1].set(xlabel="k", ylim=(0, 1.03))
    axes[1].set_title("pass@k (o), maj@k (x); prompts alike: dashed", loc="left")
    axes[2].set(xlabel="rounds of STaR", ylabel="P(long)", ylim=(0, 1.03))
    axes[2].set_title("what STaR would do", loc="left")
    legend_below(axes[0], ncols=2)
    return figure


def draw_shares(
    ax: Axes, diagnosis: Diagnosis, color: str, offset: float, label: str
) -> None:
    """Shares with their intervals, beside those of other members, and greedy."""
    shares = (diagnosis.p_long, diagnosis.accuracy_long, diagnosis.accuracy_short)
    for x, share in enumerate(shares):
        if share.count:
            ax.errorbar(
                x + offset / 2, share.value, spread(share), color=color, fmt="o", ms=4
            )
    ax.plot(
        3 + offset / 2,
        diagnosis.greedy["accuracy"],
        "s",
        color=color,
        ms=4,
        label=label,
    )


def spread(share: Share) -> list[list[float]]:
    """The interval as matplotlib has it: below and above the value."""
    return [[share.value - share.low], [share.high - share.value]]


def draw_success(ax: Axes, diagnosis: Diagnosis, color: str) -> None:
    """Success over k, and that of prompts of which none is harder than another."""
    for kind, marker in (("pass", "o"), ("maj", "x")):
        rows = {
            int(name.split("@")[1]): v
            for name, v in diagnosis.success.items()
            if name.startswith(kind)
        }
        measured, predicted = zip(*rows.values(), strict=True) if rows else ((), ())
        ax.plot([*rows], measured, marker, color=color, ms=4)
        ax.plot([*rows], predicted, "--", color=color, lw=1)
    ax.set_xscale("log", base=2)


def draw_star(ax: Axes, diagnosis: Diagnosis, color: str) -> None:
    """The predicted rounds, and where greedy decoding turns long."""
    ax.plot(diagnosis.star_shares, "o--", color=color, lw=1, ms=3)
    if diagnosis.threshold is not None:
        ax.axhline(diagnosis.threshold, color=GREY, lw=1, ls=":")
