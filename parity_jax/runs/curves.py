"""Curves to follow while a run trains: TensorBoard and Weights & Biases.

metrics.jsonl is the truth. A tool is told the records that are written there, first
those from before a run continues: no step is missing, and none is told twice but to
W&B after a SIGKILL.
"""

import importlib
import importlib.util
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from parity_jax.config import RunError, label_text, require, to_dict, unknown_value
from parity_jax.runs.directory import RunDirectory
from parity_jax.runs.files import read_as, write_json
from parity_jax.runs.metrics_file import SPLITS, Record
from parity_jax.runs.resolve import ResolvedRun

MEDIAN = "median"  # the curve of the median member
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


class Tool(Protocol):
    """What is told."""

    def tell(self, record: Record) -> None: ...

    def finish(self, rows: Mapping[str, dict[str, float]], last: Record | None) -> None:
        """The run is complete: the numbers of every member and its last scores."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Told:
    """What a tool is known to have: the records until this one, and then the rest."""

    id: str  # W&B's, of the run
    step: int = -1
    split: str = SPLITS[-1]
    is_finished: bool = False  # also what it is told when a run is complete

    @property
    def place(self) -> tuple[int, int]:
        """It grows from record to record."""
        return self.step, SPLITS.index(self.split)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise unknown_value("split", self.split, SPLITS)


def told_file(directory: RunDirectory, tool: str) -> Path:
    """Where it is remembered."""
    return directory.curves(tool) / "told.json"


def has_all(directory: RunDirectory, tool: str) -> bool:
    """Whether a tool was told everything of a run that has ended."""
    file, last = told_file(directory, tool), directory.metrics.last()
    if last is None or not file.exists():
        return False
    told: Told = read_as(Told, file)
    return told.is_finished and (told.step, told.split) == (last.step, last.split)


def check_tools(names: Sequence[str]) -> None:
    """ConfigError for a tool whose package is not installed."""
    for name in names:
        is_here = importlib.util.find_spec(PACKAGES[name]) is not None
        allowed = f"is not installed: pip install 'parity-jax[{name}]'"
        require(is_here, "log", name, allowed)


@contextmanager
def followed(
    names: Sequence[str], run: ResolvedRun, directory: RunDirectory
) -> Iterator[None]:
    """While a run trains, its records are told; at the end its numbers."""
    tools: list[Tool] = []
    try:
        for name in names:
            make = TensorBoard if name == "tensorboard" else WeightsAndBiases
            tools.append(make(run, directory))
        for record in directory.metrics.read() if tools else ():
            for tool in tools:
                tool.tell(record)
        directory.metrics.followers = [tool.tell for tool in tools]
        yield
        numbers = to_dict(run.hypers)
        rows = {label_text(label): numbers | label for label in run.labels}
        for tool in tools:
            tool.finish(rows, directory.metrics.last("eval"))
    finally:
        for tool in tools:
            tool.close()


def curves(record: Record, members: Sequence[str]) -> dict[str, dict[str, float]]:
    """The points of a record, by curve (a member, or the median) and metric."""
    out: dict[str, dict[str, float]] = {name: {} for name in (*members, MEDIAN)}
    for name, row in record.values.items():
        known = {m: v for m, v in zip(members, row, strict=True) if v is not None}
        for member, value in known.items():
            out[member][f"{record.split}/{name}"] = value
        if known:
            out[MEDIAN][f"{record.split}/{name}"] = median(known.values())
    return out


class TensorBoard:
    """Event files, a folder for each curve; written anew when a run continues."""

    def __init__(self, run: ResolvedRun, directory: RunDirectory):
        make = importlib.import_module("tensorboardX").SummaryWriter
        place = directory.curves("tensorboard")
        shutil.rmtree(place, ignore_errors=True)
        self.file, self.told = told_file(directory, "tensorboard"), Told("")
        self.members = [label_text(label) for label in run.labels]
        self.writers = {
            name: make(str(place / name)) for name in (*self.members, MEDIAN)
        }

    def tell(self, record: Record) -> None:
        for curve, points in curves(record, self.members).items():
            writer = self.writers[curve]
            for name, value in points.items():
                writer.add_scalar(name, value, record.step)
            writer.flush()
        self.told = replace(self.told, step=record.step, split=record.split)

    def finish(self, rows: Mapping[str, dict[str, float]], last: Record | None) -> None:
        """A row of the HPARAMS tab for each member; its scores are curves already."""
        hparams = importlib.import_module("tensorboardX.summary").hparams
        scores = curves(last, self.members) if last else {}
        for member, numbers in rows.items():
            for summary in hparams(numbers, scores.get(member, {})):
                self.writers[member].file_writer.add_summary(summary)
        self.told = replace(self.told, is_finished=True)

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        write_json(self.file, to_dict(self.told))


class WeightsAndBiases:
    """One W&B run for a run, whichever process goes on with it.

    A point cannot be taken back there: a file remembers the last record that is known
    to be there, because the process that told it said good-bye. After a SIGKILL some
    are told again, with the same numbers; W&B may have lost them.
    """

    def __init__(self, run: ResolvedRun, directory: RunDirectory):
        wandb = importlib.import_module("wandb")
        self.members = [label_text(label) for label in run.labels]
        self.table, self.file = wandb.Table, told_file(directory, "wandb")
        self.told = Told(id=uuid.uuid4().hex)
        if self.file.exists():
            self.told = replace(read_as(Told, self.file), is_finished=False)
        self.file.parent.mkdir(exist_ok=True)
        write_json(self.file, to_dict(self.told))
        experiment = directory.path.resolve().parent.name
        try:
            self.run = wandb.init(
                id=self.told.id,
                resume="allow",
                dir=str(directory.path),
                name=f"{experiment}/{directory.name}",
                group=experiment,
                config=to_dict(run),
                allow_val_change=True,
                settings=wandb.Settings(console="off", silent=True),
            )
        except wandb.errors.Error as error:
            text = str(error).strip().splitlines()[0]
            hint = "WANDB_MODE=offline needs no account"
            raise RunError(f"wandb: {text} ({hint})") from error
        self.run.define_metric("*", step_metric="step")

    def tell(self, record: Record) -> None:
        told = replace(self.told, step=record.step, split=record.split)
        if told.place <= self.told.place:
            return
        points: dict[str, Any] = {"step": record.step}
        for curve, values in curves(record, self.members).items():
            points |= {f"{name}/{curve}": value for name, value in values.items()}
        self.run.log(points)
        self.told = told

    def finish(self, rows: Mapping[str, dict[str, float]], last: Record | None) -> None:
        """A table with a row for each member."""
        scores = curves(last, self.members) if last else {}
        found = [numbers | scores.get(name, {}) for name, numbers in rows.items()]
        columns = list(dict.fromkeys(column for row in found for column in row))
        data = [[row.get(column) for column in columns] for row in found]
        self.run.log({"members": self.table(columns=columns, data=data)})
        self.told = replace(self.told, is_finished=True)

    def close(self) -> None:
        self.run.finish(exit_code=0 if self.told.is_finished else 1)
        write_json(self.file, to_dict(self.told))
