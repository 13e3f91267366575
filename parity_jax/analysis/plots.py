"""Figures: seeds thin, their median thick, predictions dashed, labels on the lines."""

import io
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

# Okabe-Ito colours: distinct under the common kinds of colour blindness.
INK, GREY, ACCENT = "#222222", "#8a8a8a", "#d55e00"
BLUE, GREEN, SKY, PINK = "#0072b2", "#009e73", "#56b4e9", "#cc79a7"
CYCLE = (BLUE, ACCENT, GREEN, PINK, SKY, INK)

STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=CYCLE),
    "figure.dpi": 120,
    "font.size": 9,
    "savefig.bbox": "tight",
    "svg.hashsalt": "parity_jax",  # the same figure has the same names inside
}

PATH, NUMBER = re.compile(r'(?<=\bd=")[^"]*'), re.compile(r"-?\d+\.\d{3,}")


def style() -> AbstractContextManager[None]:
    """The look of the figures, while it is entered; nothing global stays changed."""
    return mpl.rc_context(STYLE)


def draw_members(
    ax: Axes,
    values: xr.DataArray,
    color: str,
    label: str = "",
    x: ArrayLike | xr.DataArray | None = None,
    **look: Any,
) -> None:
    """Every member as a thin line over `step` (or x), the median of them thick.

    Members whose x differ, as of several checkpoints of a parent, have medians of their
    own.
    """
    x = values["step"] if x is None else x
    if isinstance(x, xr.DataArray) and {*x.dims} != {"step"}:
        name, *_ = {*x.dims} - {"step"}
        for i in range(x.sizes[name]):
            at, told = {name: i}, "" if i else label
            draw_members(ax, values.isel(at), color, told, x.isel(at), **look)
        return
    lines = values.stack(member=[d for d in values.dims if d != "step"])
    lines = lines.transpose("step", "member")
    ax.plot(x, lines, color=color, lw=0.7, alpha=0.5, **look)
    ax.plot(x, lines.median("member"), color=color, lw=2.2, label=label, **look)


def dots(ax: Axes, x: ArrayLike, values: xr.DataArray, color: str, **look: Any) -> None:
    """One dot for every seed over x, the other dimension of values."""
    y = values.transpose(..., "seed").values
    style: dict[str, Any] = dict(marker="o", ls="", ms=3.5, alpha=0.6) | look
    ax.plot(x, y, color=color, **style)


def label_line(ax: Axes, x: float, y: float, text: str, color: str, **kw: Any) -> None:
    """A label beside a line, in its colour."""
    place: dict[str, Any] = {"xytext": (4, 0), "va": "center"} | kw
    place["textcoords"] = "offset points"
    ax.annotate(text, (x, y), color=color, fontsize=8, **place)


def legend_below(ax: Axes, num: int | None = None, ncols: int = 1) -> None:
    """The legend under the axes, clear of the data; of its entries the first `num`."""
    handles, labels = ax.get_legend_handles_labels()
    place: dict[str, Any] = dict(loc="upper left", bbox_to_anchor=(0, -0.17))
    style: dict[str, Any] = dict(frameon=False, fontsize=7, ncols=ncols)
    ax.legend(handles[:num], labels[:num], **place, **style)


def end_of(values: xr.DataArray | Iterable[float]) -> float:
    """The median over members of the last step, where a label of a line stands."""
    return float(xr.DataArray(values).isel(step=-1).median())


def pictures_of(figure: Any) -> tuple[bytes, bytes]:
    """A figure as PNG and as SVG, closed; TypeError for anything else."""
    if not isinstance(figure, Figure):
        raise TypeError(f"must return a Figure, not {type(figure).__name__}")
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png")
    figure.savefig(svg, format="svg", metadata={"Date": None})
    plt.close(figure)
    return png.getvalue(), PATH.sub(rounded, svg.getvalue()).encode()


def rounded(path: re.Match[str]) -> str:
    """A path of an SVG to a hundredth of a point, which halves the file."""
    return NUMBER.sub(lambda number: f"{float(number[0]):.2f}", path[0])
