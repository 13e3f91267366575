"""The pictures of a report: a figure of an experiment, one of a sweep."""

import io
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from PIL import Image

from parity_jax.analysis.sweeps import sweep_figure
from parity_jax.runs import ExperimentDirectory, RunError
from parity_jax.runs.files import is_plain

NUM_COLOURS, MAX_WIDTH = 64, 1600  # of a PNG in a report
MAX_SVG = 500_000  # bytes; what is larger is shown as PNG


class Picture(NamedTuple):
    """A figure as PNG and as SVG; empty where there is none."""

    png: bytes
    svg: bytes


def picture_of(home: ExperimentDirectory) -> Picture:
    """The figure of an experiment; RunError if a file of it is damaged."""
    png = shrunk(home.figure) if is_plain(home.figure) else b""
    return Picture(png, small_svg(home.drawing) if is_plain(home.drawing) else b"")


def small_svg(path: Path) -> bytes:
    """An SVG, empty if it is large; RunError if damaged."""
    content = path.read_bytes()
    try:
        root = ET.fromstring(content)
    except (ET.ParseError, LookupError) as error:  # LookupError: of the encoding
        raise RunError(f"{path}: damaged: {error}") from None
    if not root.tag.endswith("svg"):
        raise RunError(f"{path}: damaged: is no SVG")
    return content if len(content) <= MAX_SVG else b""


def shrunk(path: Path) -> bytes:
    """A figure as a PNG of few colours, at most MAX_WIDTH wide; RunError if damaged."""
    try:
        saved = Image.open(path)
        saved.load()
        if saved.mode == "P":  # an earlier report's: doing it again would lose more
            return path.read_bytes()
        image = saved.convert("RGB")
        image.thumbnail((MAX_WIDTH, image.height))
        # median cut, the default, may drop the colour of a thin line
        few = image.quantize(NUM_COLOURS, method=Image.Quantize.FASTOCTREE)
        out = io.BytesIO()
        few.save(out, "PNG", optimize=True)
    except Exception as error:  # the library raises many kinds
        text = str(error).splitlines()[0:1]
        raise RunError(f"{path}: damaged: {''.join(text)}") from None
    return out.getvalue()


def figure_bytes(directory: Path, score: str, pair: Sequence[str]) -> bytes:
    """The figure of a score over two fields of a sweep, as a PNG."""
    figure, out = sweep_figure(directory, score, *pair), io.BytesIO()
    figure.savefig(out, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    return out.getvalue()
