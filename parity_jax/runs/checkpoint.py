"""Checkpoints of whole populations; the only module that knows Orbax.

A checkpoint holds every leaf of every member's `StageState` as a NumPy array under its
path ("params.blocks_0.mlp.up.kernel"), so that it can be read without the code that
wrote it and restored on any hardware, and SHA-256 digests that are verified on reading.
Where several processes hold the arrays each saves its shards, with a digest of each.
Whatever Orbax raises for a damaged file or a full disk becomes a `CheckpointError`.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from parity_jax.config import RunError, differences, lines_of
from parity_jax.hosts import any_of, is_alone, on_host
from parity_jax.metrics import Metrics
from parity_jax.runs.shards import (
    has_shards_of,
    is_as_written,
    shard_index,
    whole_arrays,
)
from parity_jax.types import StageState, path_text

# Orbax sets up logging when it is imported, which is for the program to do.
HANDLERS = [*logging.root.handlers]
import orbax.checkpoint as ocp  # noqa: E402

logging.root.handlers[:] = HANDLERS

Arrays = dict[str, Any]  # NumPy arrays, or arrays that all processes hold


class CheckpointError(RunError):
    """A checkpoint that is missing, damaged, of another program, or cannot be saved."""


class Saved(NamedTuple):
    """What a checkpoint holds."""

    step: int
    recorded: int  # step of the last record before it; -1: none
    arrays: Arrays  # the states', and under "metrics" the metrics since that record


class Checkpoints:
    """Checkpoints of one run, at explicit steps; saving is asynchronous and atomic.

    Each tells the run that it is of, by what decides its numbers (`run`); one of
    another run, wherever it comes from, is as one that is damaged.

    Opened read-only, nothing in the directory is created, tidied up or deleted: another
    process may be writing there.
    """

    def __init__(
        self, directory: Path, run: Mapping[str, Any], read_only: bool = False
    ):
        self.directory, self.run = directory.absolute(), run
        options = ocp.CheckpointManagerOptions(
            create=not read_only, cleanup_tmp_directories=not read_only
        )
        with _one_line(self.directory, "cannot be opened"):
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(
        self, step: int, states: StageState, metrics: Metrics, recorded: int
    ) -> None:
        """Copy the states to the host and write them in the background.

        With them go the metrics since the last record, whose step is `recorded`. Waits
        for the save before; CheckpointError for what went wrong with either.
        """
        head: dict[str, Any] = {"step": step, "recorded": recorded, "run": self.run}
        if is_alone():
            arrays = to_arrays(states) | to_arrays({"metrics": metrics})
            head["sha256"] = digest(arrays)
        else:  # every process saves its shards
            arrays = by_path(states) | by_path({"metrics": metrics})
            head["shards"] = shard_index(arrays)
        head["members"] = ends_of(arrays)
        head["own_sha256"] = digest_of_head(head)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), digest=ocp.args.JsonSave(head)
        )
        with _one_line(self.directory / str(step), "cannot be saved"):
            self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Return when everything is on disk; CheckpointError if it cannot be."""
        with _one_line(self.directory, "cannot be saved"):
            self._manager.wait_until_finished()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def keep_only(self, steps: Collection[int]) -> None:
        """Delete the checkpoints of all other steps."""
        for step in set(self.steps()) - set(steps):
            with _one_line(self.directory / str(step), "cannot be deleted"):
                self._manager.delete(step)

    def read(self, step: int, layout: Arrays | None = None) -> Saved:
        """What was saved at a step; CheckpointError if it is missing or damaged.

        layout    shapes of the arrays, and how the devices of all processes are to hold
                  them: where they hold what each process saved, they are read and
                  verified a shard at a time; else, and without it, whole
        """
        where = self._place(step)
        head = _agreed(where, lambda: self._head(step))
        arrays = _agreed(where, lambda: self._arrays(step, head, layout))
        recorded, run = head.pop("recorded"), head.pop("run", None)
        if any_of(not is_intact(step, head, arrays)):
            raise CheckpointError(f"{where}: content does not match its digest")
        self._require_own(where, run)
        return Saved(step, recorded, arrays)

    def _head(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(digest=ocp.args.JsonRestore())
        head = dict(self._manager.restore(step, args=args)["digest"])
        if "own_sha256" not in head:
            raise ValueError("has no digest of what it tells of itself (older version)")
        if head["own_sha256"] != digest_of_head(head):
            raise ValueError("what it tells of itself does not match its digest")
        return head

    def _arrays(
        self, step: int, head: Mapping[str, Any], layout: Arrays | None
    ) -> Arrays:
        """NumPy arrays, or those of all processes, laid out."""
        how: Any = ocp.args.StandardRestore()
        index = head.get("shards")
        if index:
            own = {k: x for k, x in (layout or {}).items() if k in index}
            if has_shards_of(index, own):
                how = ocp.args.StandardRestore(own)
                state = self._manager.restore(step, args=ocp.args.Composite(state=how))
                return dict(state["state"])
            how = ocp.args.StandardRestore(whole_arrays(index))
        state = self._manager.restore(step, args=ocp.args.Composite(state=how))
        return {name: np.asarray(x) for name, x in state["state"].items()}

    def check(self, step: int) -> Any:
        """`ends_of` its members; CheckpointError unless one of this run is there.

        Quick: arrays are not read.
        """
        where = self._place(step)
        with _one_line(where, "cannot be read"):
            head = self._head(step)
        if head.get("step") != step:
            raise CheckpointError(f"{where}: is of step {head.get('step')}")
        self._require_own(where, head.get("run"))
        return head.get("members")

    def _place(self, step: int) -> Path:
        """Where a checkpoint is; CheckpointError if there is none of this step."""
        where = self.directory / str(step)
        if step not in self.steps():
            known = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(f"{where}: no such checkpoint (there are: {known})")
        return where

    def _require_own(self, where: Path, run: Any) -> None:
        """Fields that came later, with a default, are not asked for."""
        found = differences(run, _restricted(self.run, run))
        if found:
            raise CheckpointError(f"{where}: is of another run: {lines_of(found)}")

    def read_latest(
        self, warn: Callable[[str], None], layout: Arrays | None = None
    ) -> Saved | None:
        """The newest whole checkpoint; damaged newer ones are reported and deleted.

        None if there is no checkpoint; CheckpointError, and nothing is deleted, if
        there are some but all of them are damaged.
        """
        damage: list[str] = []
        for step in reversed(self.steps()):
            try:
                saved = self.read(step, layout)
            except CheckpointError as error:
                damage.append(str(error))
                continue
            if damage:
                warn("; ".join([*damage, f"continuing from step {step} instead"]))
                self.keep_only(range(step + 1))
            return saved
        if damage:
            raise CheckpointError(
                f"no whole checkpoint is left: {'; '.join(damage)}; "
                f"to start again, delete {self.directory.parent}"
            )
        return None

    def close(self) -> None:
        """Let go of the directory; call `wait` before to hear about failed saves."""
        with suppress(Exception):  # of a failed save, which `save` or `wait` raise
            self._manager.close()


def digest_of_head(head: Mapping[str, Any]) -> str:
    """SHA-256 over all that a checkpoint tells of itself and its arrays."""
    told = {name: value for name, value in head.items() if name != "own_sha256"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def is_intact(step: int, head: Mapping[str, Any], arrays: Arrays) -> bool:
    """Whether arrays are those that a checkpoint tells of."""
    if head.get("step") != step:
        return False
    if "shards" in head:
        return is_as_written(head["shards"], arrays)
    return head.get("sha256") == digest(arrays)


def _agreed(where: Path, read: Callable[[], Any]) -> Any:
    """What is read, if every process can."""
    value: list[Any] = []
    told = f"{where}: cannot be read by another process"
    try:
        with _one_line(where, "cannot be read"):
            value.append(read())
    except CheckpointError as error:
        told = str(error)
    if any_of(not value):
        raise CheckpointError(told)
    return value[0]


@contextmanager
def _one_line(where: Path, what: str) -> Iterator[None]:
    """Turn any exception (Orbax raises many kinds) into a CheckpointError of a line."""
    try:
        yield
    except Exception as error:
        text = str(error).strip() or repr(error)
        raise CheckpointError(f"{where}: {what}: {text.splitlines()[0]}") from error


def _restricted(value: Any, fields: Any) -> Any:
    """The part of a plain dict that another one has the fields of."""
    if not isinstance(value, Mapping) or not isinstance(fields, Mapping):
        return value
    return {k: _restricted(v, fields[k]) for k, v in value.items() if k in fields}


def ends_of(arrays: Arrays) -> dict[str, list[int]]:
    """Step and status of every member, of a state's arrays `by_path`, as JSON has them.

    All processes ask together.
    """
    return {name: on_host(arrays[name]).tolist() for name in ("step", "status")}


def to_arrays(tree: Any) -> Arrays:
    """Every leaf as a host copy under its path; typed keys as their key data."""
    return {name: np.array(x) for name, x in by_path(tree).items()}


def by_path(tree: Any) -> Arrays:
    """Every leaf as it is, under its path; typed keys as their key data."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_text(path): _raw(leaf) for path, leaf in leaves}


def layout_of(tree: Any) -> Arrays:
    """The same of shapes with shardings."""

    def raw(x: Any) -> Any:
        shape = jax.eval_shape(_raw, jax.ShapeDtypeStruct(x.shape, x.dtype))
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=x.sharding)

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_text(path): raw(leaf) for path, leaf in leaves}


def from_arrays(arrays: Arrays, template: Any) -> Any:
    """The tree of the template's structure; CheckpointError names what does not fit."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(template)
    expected = {path_text(path): jax.eval_shape(_raw, leaf) for path, leaf in leaves}
    problems = [f"{name} is missing" for name in expected if name not in arrays]
    problems += [f"{name} is unknown" for name in arrays if name not in expected]
    for name in sorted(expected.keys() & arrays.keys()):
        found, leaf = arrays[name], expected[name]
        if found.shape != leaf.shape:
            problems.append(f"{name} is {found.shape}, expected {leaf.shape}")
        elif found.dtype != leaf.dtype:
            problems.append(f"{name} is {found.dtype}, expected {leaf.dtype}")
    if problems:
        raise CheckpointError("checkpoint of another program: " + "; ".join(problems))

    def restore(path: Any, leaf: Any) -> Any:
        array: Any = arrays[path_text(path)]
        if isinstance(array, np.ndarray):
            array = jax.device_put(array)  # compiles nothing
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.wrap_key_data(array) if is_key else array

    restored = [restore(path, leaf) for path, leaf in leaves]
    return jax.tree.unflatten(treedef, restored)


def subtree(arrays: Arrays, name: str) -> Arrays:
    """The arrays below a name, e.g. "params", without it."""
    prefix = name + "."
    return {
        k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)
    }


def digest(arrays: Arrays) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _raw(leaf: Any) -> Any:
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _mute_orbax() -> None:
    """Drop what Orbax says of failures: they are raised, and told in one line.

    It logs tracebacks of its threads; and reads that are under way when another one
    fails end in an event loop that is closed.
    """

    def is_ours(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    def is_no_read(record: logging.LogRecord) -> bool:
        return "tensorstore" not in record.getMessage()

    logging.getLogger("absl").addFilter(is_ours)
    logging.getLogger("asyncio").addFilter(is_no_read)
    before = sys.unraisablehook

    def told(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = told


_mute_orbax()
