"""What a run tells while it works: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from parity_jax.hosts import is_first
from parity_jax.metrics import Metrics

# Shown if present, as the median over members: (metric, label, format).
SHOWN = (
    ("loss", "loss", "{:.3f}"),
    ("reward", "reward", "{:.3f}"),
    ("greedy/accuracy", "greedy accuracy", "{:.3f}"),
    ("greedy/length_median", "length", "{:.0f}"),
    ("t1/p_long", "P(long)", "{:.3f}"),
)


class Report:
    """Progress of one stage run. quiet: nothing but warnings."""

    def __init__(
        self,
        name: str,
        num_steps: int = 0,
        start: int = 0,
        sequences_per_step: int = 0,  # of all members
        quiet: bool = True,
    ):
        # names have brackets; of several processes one speaks
        self.console = Console(
            stderr=True, markup=False, emoji=False, quiet=not is_first()
        )
        self.name, self.num_steps, self.quiet = name, num_steps, quiet
        self.sequences_per_step = sequences_per_step
        self.start, self.started = start, time.monotonic()
        self.shown: dict[str, str] = {}
        self.bar: Progress | None = None
        if self.console.is_terminal and not quiet:
            self.bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}", markup=False),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.bar.start()
            self.task = self.bar.add_task(
                name, total=num_steps, completed=start, text=""
            )

    def update(self, step: int, metrics: Metrics) -> None:
        """Show a step; `metrics` has training metrics and, at times, evaluation."""
        if self.quiet:
            return
        self.shown |= _shown(metrics)
        elapsed = time.monotonic() - self.started
        rate = (step - self.start) / elapsed if step > self.start else 0.0
        parts = [f"{label} {value}" for label, value in self.shown.items()]
        if rate:
            parts.append(f"{rate * self.sequences_per_step:.0f} sequences/s")
        text = "  ".join(parts)
        if self.bar:
            self.bar.update(self.task, completed=step, text=text)
        elif "greedy/accuracy" in metrics:
            left = f"  {(self.num_steps - step) / rate:.0f} s left" if rate else ""
            self.line(f"{self.name}  step {step}/{self.num_steps}  {text}{left}")

    def line(self, text: str) -> None:
        if not self.quiet:
            self.console.print(text, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Said even when quiet."""
        self.console.print(f"warning: {text}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self.bar:
            self.bar.stop()


def _shown(metrics: Metrics) -> Mapping[str, str]:
    shown: dict[str, Any] = {}
    for name, label, form in SHOWN:
        if name in metrics:
            values_P = np.asarray(metrics[name].value())
            if np.isfinite(values_P).any():
                shown[label] = form.format(np.nanmedian(values_P))
    return shown
