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
    ExitStack,
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
    listed,
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
    with ExitStack() as locks:
        for job in jobs:
            locks.enter_context(job.directory.locked())
        home.write_config(experiment)
        for job in jobs:
            if should_stop():
                raise StoppedError(f"stopped before {job.name}")
            with named_if_out_of_memory(job):
                execute(job, quiet, should_stop)
    return all(is_complete(run, home.run(name)) for name, run in runs.items())


@contextmanager
def under_run(name: str) -> Iterator[None]:
    """Puts the run before its own field; the evaluation file is the experiment's."""
    try:
        yield
    except ConfigError as error:
        if error.name == "eval_file":
            raise
        field = f"runs.{name}.{error.name}"
        raise ConfigError(field, error.value, error.allowed) from None


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
    jobs: list[Job] = []
    for name, run in runs.items():
        directory = home.run(name)
        has_trained = directory.trained_steps() > 0
        if has_trained:
            check_past(name, run, directory)
        if name not in names or is_complete(run, directory):
            continue
        if has_trained:
            check_settings(directory.read_lineage())
        elif run.parent.path:
            check_start(name, run, directory, [job.name for job in jobs])
        with under_run(name), in_own_code(run):
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


# What may change of a run that has trained: the schedule from here on, the layout, and
# where the prompts of evaluation are; their digest stays.
FREE = ("schedule.", "population.", "eval_file.path")


def check_past(name: str, run: ResolvedRun, directory: RunDirectory) -> None:
    """ConfigError if what has trained here is not what the run is now."""
    there = directory.read_config()
    found = [
        d
        for d in differences(to_dict(there), to_dict(run))
        if not d.path.startswith(FREE)
    ]
    where = f"{directory.path} holds another configuration"
    if found:
        field = field_of(name, found[0].path)
        raise ConfigError(field, found[0].new, f"{where}: {lines_of(found)}")
    order = [*run.axes]  # that of the members
    is_same, allowed = order == [*there.axes], f"{where}: {[*there.axes]}"
    require(is_same, f"runs.{name}.axes", order, allowed)
    steps, trained = run.schedule.num_steps, directory.trained_steps()
    allowed = f"{directory.path} is at step {trained} already"
    require(steps >= trained, f"runs.{name}.num_steps", steps, allowed)


def field_of(name: str, path: str) -> str:
    """A field of a resolved run as it is typed."""
    head, _, rest = path.partition(".")
    if head == "eval_file":
        return head
    if head == "evaluate":  # of all runs
        return path
    if head == "parent":
        path = "parent" if rest == "path" else f"parent_{rest}"
    return f"runs.{name}.{path}"


def is_complete(run: ResolvedRun, directory: RunDirectory) -> bool:
    """Whether the run has ended, at the step at which it ends now."""
    if directory.trained_steps() <= 0 or directory.read_finished() is None:
        return False
    return directory.read_config().schedule.num_steps == run.schedule.num_steps


def check_start(
    name: str, run: ResolvedRun, directory: RunDirectory, before: list[str]
) -> None:
    """ConfigError unless the parent is there, or is among those run before."""
    sibling, parent = run.parent.sibling, parent_of(run, directory)
    if sibling in before:
        return  # what it will have was checked
    field, where = f"runs.{name}.parent", sibling or run.parent.path
    if not parent.has_config():
        allowed = "must be a run of the experiment or a run directory"
        if sibling:
            allowed = "has not been run, and --only leaves it out"
        raise ConfigError(field, where, allowed)
    if is_experiment(parent.path):
        runs = ", ".join(d.name for d in ExperimentDirectory(parent.path).runs())
        allowed = f"is an experiment's directory; name one of its runs: {runs}"
        raise ConfigError(field, where, allowed)
    parent.read_lineage()  # the run's own will continue it
    wanted, saved = {*steps_of_parent(run, parent)}, parent.saved_steps()
    is_ready = parent.read_finished() is not None or wanted <= {*saved}
    allowed = "is not finished; parent_step can name one of its checkpoints: "
    require(is_ready, field, where, allowed + listed(saved))
    check_parent(name, run, parent.read_config(), where, wanted, saved)


def parent_of(run: ResolvedRun, directory: RunDirectory) -> RunDirectory:
    """The directory of the run's parent."""
    sibling = run.parent.sibling
    if sibling:
        return RunDirectory(directory.path.parent / sibling)
    return RunDirectory(Path(run.parent.path))


def steps_of_parent(run: ResolvedRun, parent: RunDirectory) -> list[int]:
    """For every member the checkpoint that it starts from.

    A finished parent may have ended before the last step that was planned, with all
    members stopped; an unfinished one has no last step: -1.
    """
    if "parent_step" in run.axes or parent.read_finished() is None:
        return run.parent_steps
    planned = parent.read_config().schedule.num_steps
    is_last = run.parent.step in (-1, planned)
    return [parent.trained_steps() if is_last else run.parent.step] * len(run.labels)


def execute(job: Job, quiet: bool, should_stop: Callable[[], bool]) -> None:
    """Run one stage from where it stands to its end."""
    name, run, directory, program, _ = job
    warn = Report(name).warn
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
    if directory.trained_steps() <= 0:
        return fresh_start(run, directory, program, checkpoints)
    own = checkpoints.read_latest(warn)
    if own is None:
        raise RunError(
            f"{directory.path}: has trained, but all checkpoints are gone; to start "
            "again, delete the directory"
        )
    lineage, now = directory.read_lineage(), this_process()
    found = differences(plain(lineage.last_process), plain(now))
    found += differences(
        to_dict(directory.read_config().population),
        to_dict(run.population),
        "population",
    )
    if found:
        text = lines_of(found)
        warn(f"continuing elsewhere than before, so not bit for bit: {text}")
    states, metrics = restored(own, program)
    directory.metrics.rewind(own.recorded)
    begin(run, directory, lineage.continued_at(own.step, now))
    note = f"continuing at step {own.step}"
    return states, metrics, own.step, own.recorded, note


def begin(run: ResolvedRun, directory: RunDirectory, lineage: Lineage) -> None:
    """Write what the run is now: it goes on, so it is not complete any more."""
    directory.reopen()
    directory.write_config(run)
    directory.write_lineage(lineage)


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
) -> tuple[StageState, Any, int, int, str]:
    """The start from a parent or from scratch; what is not trained is begun again."""
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
    stage = kind_of(type(run.stage))
    begin(run, directory, Lineage(stage, this_process(), parent))
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
    step_P = np.array(steps_of_parent(run, source))
    own_P: Arrays = {}
    hashes, diverged_P = {}, np.zeros(len(index_P), bool)
    with source.checkpoints(read_only=True) as checkpoints:
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
