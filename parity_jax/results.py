"""What a run leaves on disk beside checkpoints: metrics, claims, small JSON files."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

from parity_jax.masked import Metrics

METRICS = "metrics.jsonl"
COUNTERS = ("rollouts", "updates", "tokens")  # per step; loaded with running totals


class RunError(RuntimeError):
    """A run that cannot go on, for a reason that its message tells in one line."""


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Hold the directory for this process; RunError if another process holds it.

    The kernel lets go of the lock when the process ends, however it ends.
    """
    with (directory / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RunError(f"{directory}: in use by {holder}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def write_text(path: Path, text: str) -> None:
    """Write atomically: the file is either the old one or the whole new one."""
    part = path.with_suffix(".part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds; RunError if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{path}: missing") from None
    except ValueError as error:  # of the text encoding or of JSON
        raise RunError(f"{path}: damaged: {error}") from None


class MetricsFile:
    """Append-only metrics of a run, one JSON line per record.

    {"split": "train" | "eval", "step": n, "seconds": s, "values": {name: [P numbers]}}
    Members are in the order of the axes in config.json; null is "not computed".
    """

    def __init__(self, directory: Path):
        self.path = directory / METRICS

    def rewind(self, step: int) -> None:
        """Drop records after `step`, and a last line that was cut off.

        Every checkpoint has a record of its step; RunError if it is gone (step >= 0),
        or if there are records of a training whose checkpoints are gone (step -1).
        """
        records = read_records(self.path)
        kept = [r for r in records if r["step"] <= step]
        if step >= 0 and (not kept or kept[-1]["step"] != step):
            raise RunError(f"{self.path}: the records up to step {step} are gone")
        if step < 0 and any(r["step"] > 0 for r in records):
            raise RunError(
                f"{self.path.parent}: trained to step {records[-1]['step']}, but all "
                "checkpoints are gone; to start again, delete the directory"
            )
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def append(self, split: str, step: int, seconds: float, metrics: Metrics) -> None:
        values = {name: _numbers(mean.value()) for name, mean in metrics.items()}
        record = {
            "split": split,
            "step": step,
            "seconds": round(seconds, 3),
            "values": values,
        }
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _numbers(values_P: jax.Array) -> list[float | None]:
    return [float(v) if np.isfinite(v) else None for v in np.asarray(values_P)]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The whole records of a metrics file, without a last line that was cut off."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            raise RunError(f"{path}: line {number} is damaged") from None
    return records


def load_metrics(directory: Path, split: str) -> xr.Dataset:
    """Metrics of a run as labelled arrays with dimensions (*axes, step).

    Training metrics are means over the steps since the previous record. The counters of
    one step (`tokens`) come with running totals (`num_tokens`).
    """
    axes = read_json(directory / "config.json")["axes"]
    records = read_records(directory / METRICS)
    records = [r for r in records if r["split"] == split]
    steps = [r["step"] for r in records]
    shape = [len(values) for values in axes.values()]
    names = sorted({name for record in records for name in record["values"]})
    missing = [None] * int(np.prod(shape))
    variables = {}
    for name in names:
        rows = [r["values"].get(name, missing) for r in records]
        values_PxS = np.array(rows, dtype=float).T
        variables[name] = ([*axes, "step"], values_PxS.reshape(*shape, len(steps)))
    data = xr.Dataset(variables, coords={**axes, "step": steps})
    per_record = np.diff(steps, prepend=0)
    for name in COUNTERS:
        if name in data:
            total = (data[name].fillna(0) * per_record).cumsum("step")
            data[f"num_{name}"] = total
    return data


@dataclass(frozen=True)
class Claim:
    """A statement of the paper beside what this run measured."""

    id: str
    claim: str
    expected: str
    measured: Any  # number, or numbers by member
    tolerance: str
    holds: bool


def write_claims(directory: Path, claims: list[Claim]) -> None:
    """Write directory/claims.json."""
    write_json(directory / "claims.json", [asdict(claim) for claim in claims])


def by_member(values: xr.DataArray) -> dict[str, float | None]:
    """The values of all members under readable labels ("seed=0"); None for NaN."""
    out: dict[str, float | None] = {}
    stacked = (
        values.stack(member=values.dims) if values.dims else values.expand_dims("m")
    )
    for item in stacked.transpose(...):
        labels = {str(d): item.coords[d].item() for d in values.dims}
        name = ",".join(f"{k}={v:g}" for k, v in labels.items()) or "all"
        out[name] = round(float(item), 6) if np.isfinite(item) else None
    return out
