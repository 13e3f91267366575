"""Where a run starts: its own checkpoint, its parent's, a folder, or scratch."""

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from parity_jax.axes import parent_index
from parity_jax.config import RunError, differences, kind_of, lines_of, to_dict
from parity_jax.hosts import is_alone, meet, on_host
from parity_jax.models.huggingface import FolderError, HfFolder, is_hf_folder
from parity_jax.population import Population
from parity_jax.runs.checkpoint import (
    Arrays,
    Checkpoints,
    Saved,
    digest,
    from_arrays,
    layout_of,
    subtree,
)
from parity_jax.runs.directory import RunDirectory
from parity_jax.runs.lineage import (
    Imported,
    Lineage,
    ParentEntry,
    plain,
    this_process,
)
from parity_jax.runs.resolve import ResolvedRun
from parity_jax.types import DIVERGED, Key, Params, StageState

Warn = Callable[[str], None]


def start(
    run: ResolvedRun,
    directory: RunDirectory,
    program: Population,
    checkpoints: Checkpoints,
    warn: Warn,
) -> tuple[StageState, Any, int, int, str]:
    """States, metrics since the last record, step (-1: fresh), its record's step, note.

    From the run's own checkpoint, else its parent's, else scratch; files are brought to
    where it starts.
    """
    if directory.trained_steps() <= 0:
        return fresh_start(run, directory, program, checkpoints, warn)
    directory.reopen()  # first: what it ended with is changed from here on
    own = checkpoints.read_latest(warn, layout(program))
    if own is None:
        raise RunError(
            f"{directory.path}: has trained, but all checkpoints are gone; to start "
            "again, delete the directory"
        )
    lineage, now = directory.read_lineage(), this_process(run.own_modules)
    found = differences(plain(lineage.last_process), plain(now))
    before = directory.read_config()
    kept = sorted(kept_as_it_grows(run, directory))
    for part in ("population", "mesh"):
        was, is_now = to_dict(getattr(before, part)), to_dict(getattr(run, part))
        found += differences(was, is_now, part)
    own_code = [d for d in found if d.path.startswith("own_code.")]
    if own_code:
        text = f"{own.step + 1} on are of other code of your own: {lines_of(own_code)}"
        warn(f"steps from {text}")
    if elsewhere := [d for d in found if d not in own_code]:
        text = lines_of(elsewhere)
        warn(f"continuing elsewhere than before, so not bit for bit: {text}")
    states, metrics = restored(own, program)
    meet("all have read what the run was")
    directory.metrics.rewind(own.recorded)
    # The config last: killed before it, the run has ended where it had.
    directory.write_lineage(lineage.continued_at(own.step, now, kept))
    directory.write_config(run)
    note = f"continuing at step {own.step}"
    return states, metrics, own.step, own.recorded, note


def kept_as_it_grows(run: ResolvedRun, directory: RunDirectory) -> set[int]:
    """Checkpoints that stay, whatever the schedule of now names: those that a run had
    when it ended, before it goes on; others may start from them.
    """
    if run.schedule.max_to_keep or not directory.has_lineage():
        return set()
    before, there = directory.read_config().schedule, directory.saved_steps()
    kept = directory.read_lineage().kept & {*there}
    if there and there[-1] == before.num_steps < run.schedule.num_steps:
        kept |= {*before.kept_steps(there)}
    return kept


def begin(run: ResolvedRun, directory: RunDirectory, lineage: Lineage) -> None:
    """Write what the run is now: it goes on, so it is not complete any more."""
    directory.reopen()
    directory.write_config(run)
    directory.write_lineage(lineage)


def layout(program: Population) -> Arrays | None:
    """How several processes are to hold states and metrics; None for one."""
    if is_alone():
        return None
    states, metrics, *_ = program.arguments()
    return layout_of(states) | layout_of({"metrics": metrics})


def restored(saved: Saved, program: Population) -> tuple[StageState, Any]:
    """States and metrics since the last record of a checkpoint."""
    template = jax.eval_shape(program.init, None)
    arrays = dict(saved.arrays)
    partial = {k: arrays.pop(k) for k in [*arrays] if k.startswith("metrics.")}
    metrics = program.no_metrics()
    if partial:
        metrics = from_arrays(subtree(partial, "metrics"), metrics)
    return program.place((from_arrays(arrays, template), metrics))


class Origin(NamedTuple):
    """What the members of a run start from."""

    note: str
    params_P: Params | None = None  # None: fresh ones
    key_P: Key | None = None  # of the parents; None: there are none
    diverged_P: np.ndarray | None = None  # members whose parent had
    parent: ParentEntry | None = None
    imported: Imported | None = None


def fresh_start(
    run: ResolvedRun,
    directory: RunDirectory,
    program: Population,
    checkpoints: Checkpoints,
    warn: Warn,
) -> tuple[StageState, Any, int, int, str]:
    """The start from a parent or from scratch; what is not trained is begun again."""
    origin = origin_of(run, directory, program)
    params_P, diverged_P = origin.params_P, origin.diverged_P
    states = program.init(params_P, origin.key_P)
    if diverged_P is not None and diverged_P.any():
        if diverged_P.all():
            raise RunError(f"{directory.path}: the parents of all members diverged")
        status_P = np.where(diverged_P, DIVERGED, np.asarray(on_host(states.status)))
        status_P = program.place(status_P.astype(np.int32))
        states = states._replace(status=status_P)
    meet("all have read what there was")
    checkpoints.keep_only(())
    directory.metrics.rewind(-1)
    stage, (parent, imported) = kind_of(type(run.stage)), origin[-2:]
    now = this_process(run.own_modules)
    if run.parent.sibling:  # one command, that goes on
        was = parent_of(run, directory).read_lineage().last_process
        own = was.own_code  # edited modules were told, others are its own
        if found := differences(plain(was), plain(replace(now, own_code=own))):
            warn(f"its parent ran elsewhere, so not bit for bit: {lines_of(found)}")
    begin(run, directory, Lineage(stage, now, parent, imported=imported))
    return states, program.no_metrics(), -1, -1, origin.note


def origin_of(run: ResolvedRun, directory: RunDirectory, program: Population) -> Origin:
    """Scratch, a Hugging Face model, or checkpoints of another run."""
    if not run.parent.path:
        return Origin("from scratch")
    source = parent_of(run, directory)
    if not run.parent.sibling and is_hf_folder(source.path):
        folder = HfFolder(source.path)
        imported = imported_from(folder)
        params = folder.load(run.model, program.member_params())
        note = f"from {imported.model_type} weights in {source.path}"
        return Origin(note, program.shared(params), imported=imported)
    params_P, key_P, parent, diverged_P = parent_params(source, run, program)
    steps = ", ".join(map(str, parent.step))
    note = f"from {source.path.name} at step {steps}"
    return Origin(note, params_P, key_P, diverged_P, parent)


def imported_from(folder: HfFolder) -> Imported:
    """What lineage.json says of a Hugging Face model."""
    kind = str(folder.config.get("model_type"))
    return Imported(str(folder.path.resolve()), folder.sha256(), kind)


def parent_params(
    source: RunDirectory, run: ResolvedRun, program: Population
) -> tuple[Params, Key, ParentEntry, np.ndarray]:
    """For every member parameters and key of its parent, and whether that diverged, P.

    Between them the parent's lineage entry.
    """
    parent = source.read_config()
    index_P = parent_index(run.labels, run.hypers, parent.axes, run.parent.member)
    steps = steps_of_parent(run, source)
    check_reached(source, steps)
    step_P = np.array(steps)
    own_P: Arrays = {}
    hashes, diverged_P = {}, np.zeros(len(index_P), bool)
    with source.saved() as checkpoints:
        for step in sorted(set(step_P.tolist())):
            saved = checkpoints.read(step).arrays
            arrays, is_here_P = subtree(saved, "params"), step_P == step
            hashes[step] = digest(arrays)
            key_P = jax.random.wrap_key_data(saved["key"][index_P])  # at any step
            diverged_P |= is_here_P & (saved["status"][index_P] == DIVERGED)
            for name, array in arrays.items():
                shape = (len(step_P), *array.shape[1:])
                own = own_P.setdefault(name, np.empty(shape, array.dtype))
                own[is_here_P] = array[index_P[is_here_P]]
    template = jax.eval_shape(program.init, None).params
    entry = ParentEntry(
        str(source.path.resolve()),
        tuple(hashes),
        tuple(hashes.values()),
        tuple(sequences_until(source, run, step) for step in hashes),
    )
    return from_arrays(own_P, template), key_P, entry, diverged_P


def sequences_until(source: RunDirectory, run: ResolvedRun, step: int) -> int:
    """Training sequences of the parent's members until a step, their ancestors' too.

    Of a parent whose members started from several steps those of one of them are
    meant, which parent_member names.
    """
    own = step * source.read_config().stage.sequences_per_step
    before = source.read_lineage().parent
    if before is None:
        return own
    return own + before.sequences_at(run.parent.member.get("parent_step"))


def compared_content(parent: RunDirectory, entry: ParentEntry) -> str:
    """Whether the parameters at its steps have the digests of a lineage.

    "unchanged", "CHANGED", or "not found" and "damaged", which tell nothing.
    """
    if not parent.has_config():
        return "not found"
    try:
        with parent.saved() as checkpoints:
            if not {*entry.step} <= {*checkpoints.steps()}:
                return "not found"
            saved = (checkpoints.read(step).arrays for step in entry.step)
            found = tuple(digest(subtree(arrays, "params")) for arrays in saved)
    except RunError:
        return "damaged"
    return "unchanged" if found == entry.params_sha256 else "CHANGED"


def is_of_another_parent(run: ResolvedRun, directory: RunDirectory) -> bool:
    """Whether a run started from other parameters than its parent has now.

    Those of a parent that is gone or damaged cannot be compared.
    """
    lineage, parent = directory.read_lineage(), parent_of(run, directory)
    imported, entry = lineage.imported, lineage.parent
    with suppress(FolderError):
        is_model = is_hf_folder(parent.path)
        if imported is not None and is_model:
            return HfFolder(parent.path).sha256() != imported.safetensors_sha256
        if imported is not None:  # gone, or a run is in its place
            return parent.has_lineage()
        if entry is not None and is_model:
            return True
    return entry is not None and compared_content(parent, entry) == "CHANGED"


def parent_of(run: ResolvedRun, directory: RunDirectory) -> RunDirectory:
    """The directory of the run's parent."""
    sibling = run.parent.sibling
    if sibling:
        return RunDirectory(directory.path.parent / sibling)
    return RunDirectory(Path(run.parent.path))


def check_reached(parent: RunDirectory, steps: Collection[int]) -> None:
    """RunError if all members of a parent diverged before one of these steps."""
    finished, saved = parent.read_finished(), parent.saved_steps()
    if finished and finished.has_only_diverged and max(steps) > max(saved):
        raise RunError(
            f"{parent.path}: all members diverged before step {max(steps)}, from which "
            "another run is to start; their states are saved"
        )


def end_of_parent(run: ResolvedRun, directory: RunDirectory) -> int | None:
    """The last step of a parent elsewhere of which the last one is asked for; None of
    any other, and where it is gone, damaged or has not ended.
    """
    parent, is_said = parent_of(run, directory), "parent_step" in run.axes
    if run.parent.sibling or run.parent.step != -1 or is_said or not run.parent.path:
        return None
    with suppress(FolderError, RunError):
        is_run = parent.has_config() and not is_hf_folder(parent.path)
        if is_run and parent.read_finished() is not None:
            return parent.trained_steps()
    return None


def steps_of_parent(run: ResolvedRun, parent: RunDirectory) -> list[int]:
    """For every member the checkpoint that it starts from.

    A finished parent may have ended before the last step that was planned, with all
    members stopped; an unfinished one has no last step: -1.
    """
    if parent.read_finished() is None:
        return run.parent_steps
    last = (-1, parent.read_config().schedule.num_steps)
    if not {*run.parent_steps} & {*last}:
        return run.parent_steps
    parent.verified_finish()
    end = parent.trained_steps()
    return [end if step in last else step for step in run.parent_steps]
