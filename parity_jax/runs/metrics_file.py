"""Metrics of a run, one JSON line per record, appended while it trains.

{"split": "train" | "eval", "step": n, "seconds": s, "values": {name: [P numbers]}}
Members are in the order of the axes in config.json; null is "not computed". Seconds of
a train record are those of its steps, of an eval record those of the evaluation.
"""

import hashlib
import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from parity_jax.config import RunError, is_finite
from parity_jax.hosts import is_first
from parity_jax.metrics import Metrics
from parity_jax.runs.files import is_plain, write_text

SPLITS = ("train", "eval")


class Record(NamedTuple):
    """One line."""

    split: str
    step: int
    seconds: float
    values: dict[str, list[float | None]]  # of every member, by the metric's name


class MetricsFile:
    """The records of a run."""

    def __init__(self, path: Path):
        self.path = path
        self._names: dict[str, set[str]] = {}  # of the metrics, by split
        self.followers: list[Callable[[Record], None]] = []  # told what was appended

    def sha256(self) -> str:
        """Digest of all records but their seconds."""
        plain = [(r.split, r.step, sorted(r.values.items())) for r in self.read()]
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()

    def rewind(self, step: int) -> None:
        """Drop the records after `step`, and a last line that was cut off.

        A checkpoint tells the step of the last record before it (-1: none); RunError if
        that record is gone.
        """
        records = self.read()
        kept = [r for r in records if r.step <= step]
        if step >= 0 and (not kept or kept[-1].step != step):
            raise RunError(f"{self.path}: the records up to step {step} are gone")
        self._names = {r.split: {*r.values} for r in kept}
        lines = (json.dumps(r._asdict(), allow_nan=False) + "\n" for r in kept)
        write_text(self.path, "".join(lines))

    def append(self, split: str, step: int, seconds: float, metrics: Metrics) -> None:
        """Write a record; RunError if those before have other metrics."""
        known = self._names.setdefault(split, {*metrics})
        if known != {*metrics}:
            other = ", ".join(sorted(known ^ {*metrics}))
            text = f"an older version recorded other metrics of {split}: {other}"
            raise RunError(f"{self.path}: {text}; it cannot go on here")
        values = {name: numbers(mean.value()) for name, mean in metrics.items()}
        record = Record(split, step, round(seconds, 3), values)
        if not is_first():
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(record._asdict(), allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:  # of writing it says no file
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        for tell in self.followers:
            tell(record)

    def read(self, num_members: int | None = None) -> list[Record]:
        """The whole records, without a last line that was cut off; RunError names one
        that is not a record, not of so many members, or not in its place.
        """
        lines = self._lines()
        records: list[Record] = []
        for number, line in enumerate(lines, 1):
            try:
                record = Record(**json.loads(line))
                is_right = is_record(record, num_members)
            except (ValueError, TypeError, RecursionError):
                is_right = False
            if not is_right:
                raise RunError(f"{self.path}: line {number} is damaged")
            records.append(record)
        for split in SPLITS:
            own = [(n, r) for n, r in enumerate(records, 1) if r.split == split]
            for (_, before), (number, record) in pairwise(own):
                where = f"{self.path}: line {number} is damaged"
                if record.step <= before.step:
                    text = f"step {record.step} of {split} after step {before.step}"
                    raise RunError(f"{where}: {text}")
                if record.values.keys() != before.values.keys():
                    other = sorted(record.values.keys() ^ before.values.keys())
                    told = f"{', '.join(other)} not in each record of {split}"
                    raise RunError(f"{where}: {told}")
        return records

    def _lines(self) -> list[bytes]:
        """All but a last one that was cut off."""
        return self.path.read_bytes().split(b"\n")[:-1] if is_plain(self.path) else []

    def last(self, split: str | None = None) -> Record | None:
        """The last whole record, or that of a split; the others are not parsed."""
        lines = self._lines()
        mark = f'"split": "{split}"'.encode() if split else b""
        line = next((line for line in reversed(lines) if mark in line), None)
        if line is None:
            return None
        try:
            record = Record(**json.loads(line))
            is_right = is_record(record, None)
        except (ValueError, TypeError, RecursionError):
            is_right = False
        if not is_right:
            raise RunError(f"{self.path}: the last record is damaged")
        return record

    def last_evaluation(self, step: int, num_members: int) -> Record | None:
        """The last one at or before a step."""
        records = self.read(num_members)
        found = [r for r in records if r.split == "eval" and r.step <= step]
        return found[-1] if found else None


def is_record(record: Record, num_members: int | None) -> bool:
    """Whether what a line holds has the form of a record."""
    return (
        record.split in SPLITS
        and type(record.step) is int
        and record.step >= 0
        and _is_number(record.seconds)
        and isinstance(record.values, dict)
        and bool(record.values)
        and all(_is_row(row, num_members) for row in record.values.values())
    )


def _is_row(row: Any, num_members: int | None) -> bool:
    if not isinstance(row, list) or num_members not in (None, len(row)):
        return False
    return all(x is None or _is_number(x) for x in row)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and is_finite(value)


def numbers(values_P: jax.Array | np.ndarray) -> list[float | None]:
    """Plain numbers; None for what is not finite."""
    return [float(v) if np.isfinite(v) else None for v in np.asarray(values_P)]
