"""The files of a run and of an experiment: the only place that knows their names."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from flax.core import FrozenDict

from parity_jax.axes import member_labels
from parity_jax.config import (
    ConfigError,
    Label,
    RunError,
    differences,
    expanded,
    from_dict,
    kind_of,
    lines_of,
    require,
    to_dict,
)
from parity_jax.experiment import Experiment
from parity_jax.hosts import is_first
from parity_jax.runs.checkpoint import Checkpoints, by_path, ends_of
from parity_jax.runs.files import (
    is_locked,
    lock,
    read_as,
    read_json,
    stamp_of,
    write_json,
)
from parity_jax.runs.lineage import Lineage
from parity_jax.runs.metrics_file import MetricsFile
from parity_jax.runs.resolve import ResolvedRun
from parity_jax.types import DIVERGED, RUNNING, STATUS_TEXT, StageState

# Object storage has no atomic rename and no locks, which runs rely on.
REMOTE = ("gs://", "s3://", "http://", "https://", "hdfs://")


def local_path(name: str, text: str | Path) -> Path:
    """A path as it was typed, `~` for the home; ConfigError for one that cannot be."""
    text = str(text)
    require(bool(text.strip()), name, text, "must be the path of a directory")
    allowed = "must be on a file system: mount the bucket, or copy the run to it after"
    require(not text.lower().startswith(REMOTE), name, text, allowed)
    path = expanded(name, text)
    whole = str(path.absolute())
    allowed = "must not contain a backslash: Orbax takes it for a slash"
    require("\\" not in whole, name, text, allowed)
    is_text = all(c >= " " and not "\ud800" <= c <= "\udfff" for c in whole)
    require(is_text, name, text, "must be UTF-8 without control characters")
    return path


def new_path(name: str, text: str) -> Path:
    """One that is free and can be made; ConfigError for any other."""
    path = local_path(name, text)
    try:
        require(not path.exists(), name, text, "must not exist yet")
        around = next((p for p in path.absolute().parents if p.exists()), path)
        require(around.is_dir(), name, text, f"{around} must be a directory")
        check_writable(name, path)
        for place in path.absolute().parents:
            allowed = f"must not be in {place}, which has runs of its own"
            require(not is_home(place), name, text, allowed)
    except OSError as error:  # of a name that is too long, say
        reason = error.strerror or str(error)
        raise ConfigError(name, text, f"cannot be: {reason}") from None
    return path


def check_writable(name: str, path: Path) -> None:
    """ConfigError where nothing can be made, which would else be known after work."""
    try:
        around = next(p for p in (path, *path.absolute().parents) if p.exists())
        with TemporaryFile(dir=around):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(name, str(path), f"cannot be written: {reason}") from None


@dataclass(frozen=True)
class Finished:
    """What a complete run says of its members, and of its files."""

    step: tuple[int, ...]
    status: tuple[int, ...]
    records_sha256: str  # of metrics.jsonl but its seconds
    lineage_sha256: str  # of lineage.json
    config_sha256: str  # of config.json

    def __post_init__(self) -> None:
        allowed = f"must be of as many members as step={self.step}"
        is_right = len(self.status) == len(self.step)
        require(is_right, "status", self.status, allowed)
        known = {*self.status} <= {*STATUS_TEXT}
        require(known, "status", self.status, f"must be of {[*STATUS_TEXT]}")

    @property
    def num_diverged(self) -> int:
        return self.status.count(DIVERGED)

    @property
    def has_only_diverged(self) -> bool:
        return {*self.status} == {DIVERGED}


# Of an experiment, what is 0 or empty in these is filled in when a run is resolved.
RESOLVED = ("task", "model")


class RunDirectory:
    """config.json, lineage.json, checkpoints/, metrics.jsonl and finished.json."""

    def __init__(self, path: Path):
        self.path = path
        self._config = path / "config.json"
        self._lineage = path / "lineage.json"
        self._finished = path / "finished.json"
        self._checkpoints = path / "checkpoints"
        self.metrics = MetricsFile(path / "metrics.jsonl")

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def has_config(self) -> bool:
        """Whether a run began here."""
        return self._config.exists()

    def read_config(self) -> ResolvedRun:
        """What the run is; RunError if the file is damaged or of another version."""
        return read_as(ResolvedRun, self._config)

    def content(self) -> Any:
        """What its config says, as JSON has it; no own code is needed."""
        return read_json(self._config)

    def write_config(self, run: ResolvedRun) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self._config, to_dict(run))

    def has_lineage(self) -> bool:
        return self._lineage.exists()

    def read_lineage(self) -> Lineage:
        return read_as(Lineage, self._lineage)

    def write_lineage(self, lineage: Lineage) -> None:
        write_json(self._lineage, to_dict(lineage))

    def read_finished(self) -> Finished | None:
        """None while the run is not complete."""
        if not self._finished.exists():
            return None
        return read_as(Finished, self._finished)

    def verified_finish(self) -> Finished | None:
        """`read_finished`; RunError unless config, records and checkpoint agree."""
        finished = self.read_finished()
        if finished is None:
            return None
        run, records = self.read_config(), self.metrics.read()
        end, num = records[-1].step if records else 0, len(run.labels)
        planned = run.schedule.num_steps if records else 0  # an imported run has none
        running = {
            s
            for s, x in zip(finished.step, finished.status, strict=True)
            if x == RUNNING
        }
        if len(finished.step) != num:
            text = f"tells of {len(finished.step)} members, {self._config} of {num}"
        elif not is_lineage_of(self.read_lineage(), run):
            text = f"{self._lineage} and {self._config} are not of one run"
        elif altered := self.altered(finished):
            text = altered
        elif running - {end} or (running and end != planned):
            text = f"members at step {sorted(running)}, the last record at {end}"
            text += f", {self._config} ends at {planned}"
        elif end not in (there := self.saved_steps()):
            text = f"the checkpoint of its last step, {end}, is gone"
        elif there[-1] != end:
            text = f"there is a checkpoint of step {there[-1]}, after its last, {end}"
        else:
            with self.saved() as checkpoints:
                saved = checkpoints.check(end)
            own = {"step": [*finished.step], "status": [*finished.status]}
            if saved == own:
                return finished
            text = f"its members are {own}, in the checkpoint of step {end} {saved}"
        raise RunError(f"{self._finished}: damaged: {text}")

    def altered(self, finished: Finished) -> str:
        """Which of its files are not as the end of the run told; or none."""
        now, was = self._hashes(), to_dict(finished)
        files = (self.metrics.path, self._lineage, self._config)
        pairs = zip(files, now, strict=True)
        changed = [file for file, name in pairs if now[name] != was[name]]
        return f"{changed[0]} is not as it was when the run ended" if changed else ""

    def _hashes(self) -> dict[str, str]:
        return {
            "records_sha256": self.metrics.sha256(),
            "lineage_sha256": sha256(read_json(self._lineage)),
            "config_sha256": sha256(self.content()),
        }

    def write_finished(self, states: StageState) -> None:
        ends = ends_of(by_path(states))
        members = (tuple(ends["step"]), tuple(ends["status"]))
        finished = Finished(*members, *self._hashes().values())
        write_json(self._finished, to_dict(finished))

    def reopen(self) -> None:
        """The run is not complete any more: it goes on."""
        if is_first():
            self._finished.unlink(missing_ok=True)

    @property
    def seconds(self) -> float | None:
        """Those that its records took, compilation included; None before its end."""
        if not self._finished.exists():
            return None
        return sum(record.seconds for record in self.metrics.read())

    def checkpoints(self, run: ResolvedRun) -> AbstractContextManager[Checkpoints]:
        """Those of a run, to be written; closed at the end."""
        return closing(Checkpoints(self._checkpoints, run.decisive))

    def saved(self) -> AbstractContextManager[Checkpoints]:
        """Those of the run that config.json tells, to be read; closed at the end."""
        run = self.read_config().decisive
        return closing(Checkpoints(self._checkpoints, run, read_only=True))

    def saved_steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        try:  # one look: between two a writer may put a new one in an old one's place
            with os.scandir(self._checkpoints) as entries:
                names = [e.name for e in entries if e.name.isdecimal() and e.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(map(int, names))

    def stamp(self) -> tuple[Any, ...]:
        """What changes when somebody works here: times and sizes of its files."""
        files = (self._config, self._lineage, self._finished, self.metrics.path)
        return (*map(stamp_of, files), *self.saved_steps())

    def trained_steps(self) -> int:
        """Steps that are on disk, as a checkpoint or a record; -1: not even step 0.

        Of a finished run it is the step at which it ended.
        """
        records = self.metrics.read()
        return max([*self.saved_steps(), *(r.step for r in records[-1:])], default=-1)

    def last_step(self) -> int:
        """What `trained_steps` says, at a glance: names of files and the last record.

        Nothing is imported or checked for it; -1: not even step 0.
        """
        record = self.metrics.last()
        return max([*self.saved_steps(), record.step if record else -1])

    def planned_steps(self) -> int:
        """Where the run will end, whatever else its config says."""
        content = self.content()
        try:
            return int(content["schedule"]["num_steps"])
        except (KeyError, TypeError, ValueError):
            raise RunError(f"{self._config}: damaged: has no num_steps") from None

    def labels(self) -> list[Label]:
        """The members, whatever else its config says."""
        content = self.content()
        try:
            axes = from_dict(FrozenDict[str, tuple[Any, ...]], content["axes"])
        except (KeyError, TypeError, ConfigError):
            raise RunError(f"{self._config}: damaged: has no axes") from None
        return member_labels(axes)

    def curves(self, tool: str) -> Path:
        """Where the files of TensorBoard or W&B are, if it is told."""
        return self.path / tool

    def last_change(self) -> float | None:
        """When something was last written, in seconds of the epoch; None: never."""
        files = (self._lineage, self.path / "checkpoints", self.metrics.path)
        return max((f.stat().st_mtime for f in files if f.exists()), default=None)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Held for this process."""
        self.path.mkdir(parents=True, exist_ok=True)
        with lock(self.path):
            yield


def sha256(content: Any) -> str:
    """Digest of what a JSON file says."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_lineage_of(lineage: Lineage, run: ResolvedRun) -> bool:
    """Whether stage and parent, with its steps, are those of a run's config."""
    entry, steps = lineage.parent, run.axes.get("parent_step")
    if lineage.stage != kind_of(type(run.stage)):
        return False
    if entry is None:
        return not run.parent.path or lineage.imported is not None
    if steps is None:
        fits = len(entry.step) == 1
    else:  # the parent may have ended earlier than where it was to
        fits = {*entry.step} == {min(step, max(entry.step)) for step in steps}
    return bool(run.parent.path) and fits


class ExperimentDirectory:
    """config.json, what its analysis leaves, and a directory for each run."""

    def __init__(self, path: Path):
        self.path = path
        self._config = path / "config.json"
        self.claims = path / "claims.json"
        self.answer = path / "answer.json"
        self.command = path / "command.txt"  # that made them
        self.figure = path / "figure.png"
        self.drawing = path / "figure.svg"  # the same figure

    def begin(self, experiment: Experiment, goes_on: bool) -> None:
        """Write the config; nothing is kept that tells of runs that go on."""
        self.path.mkdir(parents=True, exist_ok=True)
        with lock(self.path, wait=True):
            self.write_config(experiment)
            if goes_on:
                self.forget_analysis()

    @contextmanager
    def settled(self) -> Iterator[bool]:
        """Held while its runs are looked at; whether no process works on one.

        Processes that analyse at a time take turns.
        """
        with lock(self.path, wait=True):
            yield not any(is_locked(run.path) for run in self.runs())

    def forget_analysis(self) -> None:
        """Claims, answer and figure are gone: the runs that they tell of go on."""
        made = (self.claims, self.answer, self.figure, self.drawing, self.command)
        for file in made if is_first() else ():
            file.unlink(missing_ok=True)

    def run(self, name: str) -> RunDirectory:
        return RunDirectory(self.path / name)

    def runs(self) -> list[RunDirectory]:
        """The runs that began here."""
        found = [p.parent for p in sorted(self.path.glob("*/config.json"))]
        return [RunDirectory(path) for path in found]

    def planned(self) -> list[RunDirectory]:
        """All its runs, whatever else its config says."""
        runs = read_json(self._config)["runs"]
        if not isinstance(runs, dict) or any(Path(n).name != n for n in runs):
            raise RunError(f"{self._config}: damaged: names no run")
        for name in runs:
            self.check_run(name)
        return [self.run(name) for name in runs]

    def check_run(self, name: str) -> None:
        """RunError for a run of another experiment, as far as no own code is needed."""
        run = self.run(name)
        if not run.has_config():
            return
        whole, own = read_json(self._config), run.content()
        try:
            here = whole["runs"][name]
            expected = {part: here[part] or whole[part] for part in RESOLVED}
            expected |= {part: here[part] for part in ("stage", "hypers")}
            expected["evaluate"] = whole["evaluate"]
            expected["axes"] = whole["axes"] | here["axes"]
            found = {part: own[part] for part in expected}
        except (KeyError, TypeError) as error:
            raise RunError(f"{self._config}: damaged: has no {error}") from None
        different = [
            d
            for d in differences(found, expected)
            if d.new or d.path.partition(".")[0] not in RESOLVED
        ]
        if different:
            told = lines_of(different)
            raise RunError(
                f"{run.path}: is of another experiment than {self.path}: {told}"
            )

    def has_config(self) -> bool:
        return self._config.exists()

    def read_config(self) -> Experiment:
        experiment = read_as(Experiment, self._config)
        if not experiment.runs:
            raise RunError(f"{self._config}: damaged: names no run")
        return experiment

    def write_config(self, experiment: Experiment) -> None:
        """All that is set."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self._config, to_dict(experiment))


def is_home(path: Path) -> bool:
    """Whether a directory is a run's, or an experiment's that has begun."""
    if not (path / "config.json").exists():
        return False
    return any(RunDirectory(p).has_lineage() for p in (path, *path.iterdir()))


def is_experiment(path: Path) -> bool:
    """Whether a directory is an experiment's; if not, it is a run's, or refused."""
    config = path / "config.json"
    allowed = "must be a directory that a run or an experiment made (no config.json)"
    require(config.exists(), "directory", str(path), allowed)
    content = read_json(config)
    if isinstance(content, dict) and "runs" in content:
        return True
    if isinstance(content, dict) and "schedule" in content:
        return False
    if isinstance(content, dict) and "model_type" in content:
        allowed = "is a Hugging Face model's: parity-jax import_hf makes a run of it"
        raise ConfigError("directory", str(path), allowed)
    raise RunError(f"{config}: damaged: neither of a run nor of an experiment")
