"""Execution: what is checked before a run, where it starts, and what it leaves.

The guarantee: however a run is interrupted, the same command continues from its newest
whole checkpoint and ends with the checkpoints, metrics (but their seconds) and claims
that it would have ended with, bit for bit. The limits: the same versions of code and
packages, the same kind and number of devices, the same `population` layout. Across them
results agree to rounding; lineage.json says who did what, and continuing warns.
Damaged files are never used: an older checkpoint is, with a warning, or a RunError says
what is wrong.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    closing,
    contextmanager,
    nullcontext,
)
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from parity_jax.config import (
    ConfigError,
    UserCodeError,
    differences,
    in_code_of,
    kind_of,
    lines_of,
    require,
    to_dict,
    under,
)
from parity_jax.experiment import Experiment
from parity_jax.population import Population, parent_index
from parity_jax.runs.checkpoint import (
    Arrays,
    Checkpoints,
    Saved,
    digest,
    from_arrays,
    subtree,
)
from parity_jax.runs.directory import (
    ExperimentDirectory,
    RunDirectory,
    is_experiment,
)
from parity_jax.runs.files import RunError
from parity_jax.runs.interrupt import StoppedError, never
from parity_jax.runs.lineage import (
    DECISIVE,
    Lineage,
    ParentEntry,
    plain,
    settings,
    this_process,
)
from parity_jax.runs.loop import Training
from parity_jax.runs.progress import Report
from parity_jax.runs.resolve import (
    ResolvedRun,
    check_parent,
    make_program,
    resolve,
    select,
)
from parity_jax.types import DIVERGED, Params, StageState

Warn = Callable[[str], None]


class Job(NamedTuple):
    """A run that is to be executed, everything about it checked."""

    name: str
    run: ResolvedRun
    directory: RunDirectory
    program: Population
    scores: Any  # shapes of its evaluation, by name


def run_experiment(
    experiment: Experiment,
    workdir: Path,
    only: Sequence[str] = (),
    quiet: bool = False,
    should_stop: Callable[[], bool] = never,
    rehearse: Callable[[list[Job]], None] | None = None,
) -> bool:
    """Execute or continue the runs of an experiment, in order; whether all are done.

    Everything is checked before anything is written, and `rehearse` may check more: a
    directory that holds another experiment is refused (ConfigError), and a run that
    another process works in (RunError). Complete runs are skipped. When `should_stop`
    says so, the run in progress saves its state and StoppedError is raised.
    """
    runs, home = resolve(experiment), ExperimentDirectory(workdir)
    try:
        jobs = plan(runs, home, select(list(runs), list(only)))
        if rehearse is not None and jobs:
            rehearse(jobs)
    except UserCodeError as error:
        error.is_early = True
        raise
    with home.locked():
        home.write_config(experiment)
    for job in jobs:
        if should_stop():
            raise StoppedError(f"stopped before {job.name}")
        with job.directory.locked(), named_if_out_of_memory(job):
            execute(job, quiet, should_stop)
    return all(home.run(name).read_finished() is not None for name in runs)


def in_own_code(run: ResolvedRun) -> AbstractContextManager[None]:
    """Names the user's own task, model and stage in what they raise, if there are."""
    kinds = [kind_of(type(part)) for part in (run.task, run.model, run.stage)]
    own = [kind for kind in kinds if ":" in kind]
    return in_code_of(", ".join(own)) if own else nullcontext()


@contextmanager
def named_if_out_of_memory(job: Job) -> Iterator[None]:
    """Says which run asked for too much memory, and what of it to lower."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        text = str(error).strip().splitlines()[:1]
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in "".join(text):
            raise RunError(
                f"run {job.name} ({len(job.program.labels)} members, "
                f"{job.run.stage.sequences_per_step} sequences a step) is out of "
                f"memory ({''.join(text)}); lower its batch, prompts or generations, "
                "the evaluation's prompts, or population.vmap_width"
            ) from error
        raise


def plan(
    runs: dict[str, ResolvedRun], home: ExperimentDirectory, names: list[str]
) -> list[Job]:
    """The runs that are left to do; ConfigError for any that cannot be done.

    Every run that began here is compared with what it is now, whether it is to be run
    or not: no result of another configuration is used.
    """
    check_strangers(runs, home)
    jobs = []
    for name, run in runs.items():
        directory = home.run(name)
        with under(f"runs.{name}"):
            is_done = check_past(run, directory)
        if name not in names or is_done:
            continue
        if run.parent.path and not directory.has_lineage():
            check_start(name, run, directory, names)
        with under(f"runs.{name}"):
            with in_own_code(run):
                program = make_program(run)
                scores = program.shapes()[1]
        jobs.append(Job(name, run, directory, program, scores))
    return jobs


def check_strangers(runs: dict[str, ResolvedRun], home: ExperimentDirectory) -> None:
    """ConfigError if the directory holds runs of another experiment, or is a run."""
    strangers = [d.path.name for d in home.runs() if d.path.name not in runs]
    allowed = f"holds runs of another experiment: {', '.join(strangers)}"
    require(not strangers, "workdir", str(home.path), allowed)
    is_run = home.has_config() and RunDirectory(home.path).has_lineage()
    require(not is_run, "workdir", str(home.path), "is the directory of a run")


def check_past(run: ResolvedRun, directory: RunDirectory) -> bool:
    """Whether the run is complete as it is now; ConfigError if its past is another's.

    What does not change the past may change: the schedule from here on, the layout.
    What has not trained has no past.
    """
    if not directory.has_config():
        orphans = (directory.path / "checkpoints").exists() or directory.has_lineage()
        if orphans:
            raise RunError(f"{directory.path}/config.json: missing, but a run began")
        return False
    there = directory.read_config()
    trained = trained_steps(directory)
    if trained > 0:
        found = [
            d
            for d in differences(to_dict(there), to_dict(run))
            if not d.path.startswith(("schedule.", "population."))
        ]
        allowed = f"{directory.path} holds another configuration: {lines_of(found)}"
        if found:
            name = found[0].path.replace("parent.", "parent_")
            raise ConfigError(name, found[0].new, allowed)
    steps = run.schedule.num_steps
    allowed = f"{directory.path} is at step {trained} already"
    require(steps >= trained, "num_steps", steps, allowed)
    finished = directory.read_finished()
    if finished is None or (trained <= 0 and there != run):
        return False
    return steps == there.schedule.num_steps


def trained_steps(directory: RunDirectory) -> int:
    """The newest checkpoint's step, or the last record's if there is none; -1: none."""
    steps = directory.saved_steps()
    records = directory.metrics.read()
    return max([*steps, *(r.step for r in records[-1:])], default=-1)


def check_start(
    name: str, run: ResolvedRun, directory: RunDirectory, names: list[str]
) -> None:
    """ConfigError unless the parent is there, or is to be run before, and is whole."""
    sibling, parent = run.parent.sibling, parent_of(run, directory)
    where = sibling or run.parent.path
    if parent.has_config() and is_experiment(parent.path):
        names = ", ".join(d.name for d in ExperimentDirectory(parent.path).runs())
        allowed = f"is an experiment's directory; name one of its runs: {names}"
        raise ConfigError(f"runs.{name}.parent", where, allowed)
    if not parent.has_config():
        allowed = "must be a run of the experiment or a run directory"
        if sibling:
            allowed = f"has not been run, and --only={','.join(names)} leaves it out"
        require(sibling in names, f"runs.{name}.parent", where, allowed)
        return
    if sibling in names and parent.read_finished() is None:
        return  # it goes on before
    wanted = {*run.parent_steps}
    is_named = not sibling and -1 not in wanted
    is_named |= "parent_step" in run.axes
    allowed = "is not finished; name the checkpoint to start from by parent_step"
    finished = parent.read_finished()
    require(finished is not None or is_named, f"runs.{name}.parent", where, allowed)
    steps = tuple(parent.saved_steps())
    if sibling in names and finished is not None:
        return  # it may be continued before; what it will have was checked
    check_parent(name, run, parent.read_config(), where, steps)


def parent_of(run: ResolvedRun, directory: RunDirectory) -> RunDirectory:
    """The directory of the run's parent."""
    sibling = run.parent.sibling
    if sibling:
        return RunDirectory(directory.path.parent / sibling)
    return RunDirectory(Path(run.parent.path))


def execute(job: Job, quiet: bool, should_stop: Callable[[], bool]) -> None:
    """Run one stage from where it stands to its end."""
    name, run, directory, program, _ = job
    warn = Report(name).warn
    directory.reopen()
    with directory.checkpoints() as checkpoints:
        started = start(run, directory, program, checkpoints, warn)
        states, metrics, step, recorded, note = started
        report = Report(
            name,
            run.schedule.num_steps,
            max(step, 0),
            run.stage.sequences_per_step * len(program.labels),
            quiet,
        )
        report.line(f"{name}: {len(program.labels)} members, {note}")
        files = (checkpoints, directory.metrics)
        training = Training(run.schedule, program, *files, report)
        with closing(report):
            states = training.run(states, metrics, step, recorded, should_stop)
    directory.write_finished(states)


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
    own = checkpoints.read_latest(warn) if directory.has_lineage() else None
    if own is None or own.step <= 0:
        return fresh_start(run, directory, program, checkpoints, warn)
    lineage, now = directory.read_lineage(), this_process()
    check_settings(lineage)
    found = differences(plain(lineage.last_process), plain(now))
    found += differences(
        to_dict(directory.read_config().population),
        to_dict(run.population),
        "population",
    )
    if found:
        text = lines_of(found)
        warn(f"continuing elsewhere than before, so not bit for bit: {text}")
    directory.metrics.rewind(own.recorded)
    directory.write_config(run)
    directory.write_lineage(lineage.continued_at(own.step, now))
    states, metrics = restored(own, program)
    note = f"continuing at step {own.step}"
    return states, metrics, own.step, own.recorded, note


def restored(saved: Saved, program: Population) -> tuple[StageState, Any]:
    """States and metrics since the last record of a checkpoint."""
    template = jax.eval_shape(program.init, None)
    arrays = dict(saved.arrays)
    partial = {k: arrays.pop(k) for k in [*arrays] if k.startswith("metrics.")}
    metrics = program.no_metrics()
    if partial:
        metrics = from_arrays(subtree(partial, "metrics"), metrics)
    return program.place((from_arrays(arrays, template), metrics))


def fresh_start(
    run: ResolvedRun,
    directory: RunDirectory,
    program: Population,
    checkpoints: Checkpoints,
    warn: Warn,
) -> tuple[StageState, Any, int, int, str]:
    """The start from a parent or from scratch; what is not trained is begun again."""
    if any(record.step > 0 for record in directory.metrics.read()):
        raise RunError(
            f"{directory.path}: has trained, but all checkpoints are gone; to start "
            "again, delete the directory"
        )
    params_P, parent, note, diverged_P = None, None, "from scratch", None
    if run.parent.path:
        source = parent_of(run, directory)
        params_P, parent, diverged_P = parent_params(source, run, program)
        steps = ", ".join(map(str, parent.step))
        note = f"from {source.path.name} at step {steps}"
    states = program.init(params_P)
    if diverged_P is not None and diverged_P.any():
        if diverged_P.all():
            raise RunError(f"{directory.path}: the parents of all members diverged")
        status_P = np.where(diverged_P, DIVERGED, np.asarray(states.status))
        status_P = program.place(status_P.astype(np.int32))
        states = states._replace(status=status_P)
    checkpoints.keep_only(())
    directory.metrics.rewind(-1)
    directory.write_config(run)
    directory.write_lineage(Lineage(kind_of(type(run.stage)), this_process(), parent))
    return states, program.no_metrics(), -1, -1, note


def check_settings(lineage: Lineage) -> None:
    """ConfigError for a setting of JAX under which the run would be another one."""
    was, now = lineage.last_process.settings, settings()
    for name in DECISIVE:
        allowed = f"must be {was.get(name)}, as when the run began"
        require(was.get(name) == now[name], name.upper(), now[name], allowed)


def parent_params(
    source: RunDirectory, run: ResolvedRun, program: Population
) -> tuple[Params, ParentEntry, np.ndarray]:
    """For every member the parameters of its parent, and whether that diverged, P.

    Between them the parent's lineage entry.
    """
    parent = source.read_config()
    index_P = parent_index(run.labels, run.hypers, parent.axes, run.parent.member)
    own_P: Arrays = {}
    hashes, diverged_P = {}, np.zeros(len(index_P), bool)
    with source.checkpoints(read_only=True) as checkpoints:
        known = checkpoints.steps()
        newest = known[-1] if known else 0
        finished = source.read_finished()
        # all members may have stopped before the last step that was planned
        early = finished is not None and newest < parent.schedule.num_steps
        last = {-1: newest} | ({parent.schedule.num_steps: newest} if early else {})
        step_P = np.array([last.get(n, n) for n in run.parent_steps])
        for step in sorted(set(step_P.tolist())):
            saved = checkpoints.read(step).arrays
            arrays, is_here_P = subtree(saved, "params"), step_P == step
            hashes[step] = digest(arrays)
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
        tuple(sequences_until(source, parent, step) for step in hashes),
    )
    return from_arrays(own_P, template), entry, diverged_P


def sequences_until(directory: RunDirectory, run: ResolvedRun, step: int) -> int:
    """Training sequences of a member until a step, its ancestors' too (their most)."""
    parent = directory.read_lineage().parent
    before = max(parent.sequences) if parent else 0
    return before + step * run.stage.sequences_per_step
