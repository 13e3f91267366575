"""Execution: what is checked before a run, where it starts, and what it leaves.

The guarantee: however a run is interrupted, the same command continues from its newest
whole checkpoint and ends with the checkpoints, metrics (but their seconds) and claims
that it would have ended with, bit for bit. The limits: the same versions of code and
packages, the same kind and number of devices, the same `population` layout. Across them
results agree to rounding; lineage.json says who did what, and continuing warns.
Damaged files are never used: an older checkpoint is, with a warning, or a RunError says
what is wrong.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from parity_jax.config import (
    ConfigError,
    RunError,
    StoppedError,
    differences,
    early,
    kind_of,
    lines_of,
    require,
    to_dict,
)
from parity_jax.experiment import Experiment
from parity_jax.hosts import any_of, is_first, meet
from parity_jax.models.huggingface import HfFolder, is_hf_folder
from parity_jax.platform import is_out_of_memory
from parity_jax.population import Population, check_devices
from parity_jax.runs.curves import check_tools, followed, has_all
from parity_jax.runs.directory import (
    ExperimentDirectory,
    RunDirectory,
    check_writable,
    is_experiment,
)
from parity_jax.runs.interrupt import never
from parity_jax.runs.lineage import DECISIVE, Lineage, edited_code, settings
from parity_jax.runs.loop import Training
from parity_jax.runs.progress import Report
from parity_jax.runs.resolve import (
    Parts,
    ResolvedRun,
    check_parent,
    check_steps,
    in_own_code,
    listed,
    make_program,
    parts_of,
    resolve,
    select,
    under_run,
)
from parity_jax.runs.start import (
    check_reached,
    end_of_parent,
    is_of_another_parent,
    kept_as_it_grows,
    parent_of,
    start,
    steps_of_parent,
)
from parity_jax.runs.sweep import is_sweep
from parity_jax.runs.unread import check_numbers


class Recorded(NamedTuple):
    """The names of what a run records."""

    train: list[str]
    eval: list[str]

    @classmethod
    def of(cls, program: Population) -> "Recorded":
        """All is traced, and nothing compiled."""
        metrics, scores = program.shapes()[1:]
        return cls([*metrics], [*scores])


class Job(NamedTuple):
    """A run that is to be executed, everything about it checked."""

    name: str
    run: ResolvedRun
    directory: RunDirectory
    program: Population
    recorded: Recorded


# May refuse runs that are to be executed, by their names, before anything is written.
Rehearse = Callable[[Mapping[str, Recorded]], None]


def run_experiment(
    experiment: Experiment,
    workdir: Path,
    only: Sequence[str] = (),
    quiet: bool = False,
    should_stop: Callable[[], bool] = never,
    rehearse: Rehearse = lambda runs: None,
) -> bool:
    """Execute or continue the runs of an experiment, in order; whether all are done.

    Everything is checked before anything is written, and `rehearse` may check more: a
    directory that holds another experiment is refused (ConfigError), and a run that
    another process works in (RunError). Complete runs are skipped. When `should_stop`
    says so, the run in progress saves its state and StoppedError is raised.
    """
    home = ExperimentDirectory(workdir)
    with early():
        runs = resolve(experiment)
        check_tools(experiment.log)
        before = stamps(runs, home)
        left = left_to_do(runs, home, select(list(runs), list(only)))
        jobs = plan(runs, home, left)
        if jobs:
            rehearse({job.name: job.recorded for job in jobs})
    meet("all have planned")
    with ExitStack() as locks:
        for name in select([*runs], [*only]) if is_first() else ():
            directory = home.run(name)
            if tools := undrawn(runs[name], directory, experiment.log):
                with directory.locked(), followed(tools, runs[name], directory):
                    pass  # what is recorded is told at once
        for job in jobs:
            locks.enter_context(job.directory.locked())
        if stamps(runs, home) != before:  # somebody worked here while this one planned
            left = left_to_do(runs, home, [job.name for job in jobs])
            jobs = [job for job in jobs if job.name in left]
        meet("all have looked again")
        home.begin(experiment, goes_on=bool(jobs))
        for job in jobs:
            if any_of(should_stop()):
                raise StoppedError(f"stopped before {job.name}")
            with named_if_out_of_memory(job.name, job.run):
                execute(job, experiment.log, quiet, should_stop)
            check_children(job.name, runs, home)
    done = completed(runs, home)
    for name, is_done in done.items():
        finished = home.run(name).read_finished()
        if is_done and finished is not None and finished.has_only_diverged:
            raise RunError(f"{name}: all members diverged; their states are saved")
    return all(done.values())


def stamps(runs: Iterable[str], home: ExperimentDirectory) -> list[Any]:
    """What changes when somebody works on one of these runs."""
    return [home.run(name).stamp() for name in runs]


def completed(
    runs: Mapping[str, ResolvedRun], home: ExperimentDirectory
) -> dict[str, bool]:
    """Whether each run has ended; RunError for one that somebody ran otherwise."""
    try:
        check_home(runs, home)
    except ConfigError as error:
        raise RunError(f"another command worked here meanwhile: {error}") from None
    return {name: is_complete(run, home.run(name)) for name, run in runs.items()}


def undrawn(run: ResolvedRun, directory: RunDirectory, log: Sequence[str]) -> list[str]:
    """The tools that were not there to draw the curves of a run that has ended."""
    if not log or not is_complete(run, directory):
        return []
    return [tool for tool in log if not has_all(directory, tool)]


@contextmanager
def named_if_out_of_memory(name: str, run: ResolvedRun) -> Iterator[None]:
    """Says which run asked for too much memory, and what of it to lower."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        text = str(error).strip().splitlines()[:1]
        if is_out_of_memory(error):
            raise RunError(
                f"run {name} ({len(run.labels)} members, "
                f"{run.stage.sequences_per_step} sequences a step) is out of "
                f"memory ({''.join(text)}); lower its batch, prompts or generations, "
                "the evaluation's prompts, or population.vmap_width"
            ) from error
        raise


def plan(
    runs: dict[str, ResolvedRun], home: ExperimentDirectory, left: Sequence[str]
) -> list[Job]:
    """The runs that are left to do; ConfigError for any that cannot be done."""
    jobs: list[Job] = []
    made: dict[str, Parts] = {}
    for name in left:
        run = runs[name]
        check_devices(run.population)
        with named_if_out_of_memory(name, run), under_run(name), in_own_code(run):
            program = make_program(run, parts=parts_of(run, made))
            recorded = Recorded.of(program)
        jobs.append(Job(name, run, home.run(name), program, recorded))
    check_numbers(runs, {job.name: job.program for job in jobs})
    return jobs


def left_to_do(
    runs: dict[str, ResolvedRun], home: ExperimentDirectory, names: Sequence[str]
) -> list[str]:
    """Of these runs those that have not ended; ConfigError for files that refuse one.

    Every run that began here is compared with what it is now, whether it is to be run
    or not: no result of another configuration is used.
    """
    trained, left = check_home(runs, home), list[str]()
    for name, run in runs.items():
        directory, has_trained = home.run(name), name in trained
        if has_trained:
            check_same_parent(name, run, directory)
        if name not in names:
            continue
        if is_complete(run, directory):
            tell_ended(name, run, directory)
            continue
        if has_trained:
            check_settings(directory.read_lineage())
        elif run.parent.path:
            check_start(name, run, directory, {each: runs[each] for each in left})
            check_same_start(name, run, {each: runs[each] for each in trained}, home)
        check_writable("workdir", directory.path)
        left.append(name)
    return left


def check_home(runs: Mapping[str, ResolvedRun], home: ExperimentDirectory) -> list[str]:
    """The runs that have trained; ConfigError if one is not what it is now."""
    check_strangers(runs, home)
    trained = [name for name in runs if home.run(name).trained_steps() > 0]
    for name in trained:
        check_past(name, runs[name], home.run(name))
    return trained


def check_same_parent(name: str, run: ResolvedRun, directory: RunDirectory) -> None:
    """ConfigError if a run started from other parameters than its parent has now; says
    so where that cannot be told, or its parent has gone on.
    """
    where = run.parent.sibling or run.parent.path
    if is_of_another_parent(run, directory):
        allowed = f"{directory.path} {OTHER_PARENT}"
        raise ConfigError(f"runs.{name}.parent", where, allowed)
    was, now = directory.read_lineage().parent, end_of_parent(run, directory)
    if was is None:
        return
    if lacks_any(parent_of(run, directory), was.step):
        told = f"the parent of {name}, {where}, has no checkpoint of step"
        told += f" {listed(was.step)} any more and cannot be compared"
        Report(name).warn(told)
    elif now is not None and was.step != (now,):
        told = f"{name} started from step {listed(was.step)} of its parent, {where}"
        Report(name).warn(f"{told}, which ends at {now} now")


def check_same_start(
    name: str,
    run: ResolvedRun,
    others: Mapping[str, ResolvedRun],
    home: ExperimentDirectory,
) -> None:
    """ConfigError for the last step of a parent elsewhere, if that was another one when
    other runs of the experiment, which have trained, started from it.
    """
    now = end_of_parent(run, home.run(name))
    for other, trained in others.items():
        if now is None or trained.parent != run.parent:
            continue
        was = home.run(other).read_lineage().parent
        if was is not None and was.step != (now,):
            told = f"ends at step {now} now, and {other} started from step"
            told += f" {listed(was.step)} of it: name one with parent_step"
            raise ConfigError(f"runs.{name}.parent", run.parent.path, told)


def lacks_any(parent: RunDirectory, steps: Collection[int]) -> bool:
    """Whether a run has not all of the checkpoints, or is gone."""
    return not {*steps} <= {*parent.saved_steps()}


OTHER_PARENT = "started from other parameters than its parent has now"


def check_children(
    name: str, runs: dict[str, ResolvedRun], home: ExperimentDirectory
) -> None:
    """RunError if a run trained before its parent, which was deleted and run anew."""
    for child, run in runs.items():
        directory = home.run(child)
        is_child = run.parent.sibling == name and directory.trained_steps() > 0
        if is_child and is_of_another_parent(run, directory):
            text = f"{directory.path} {OTHER_PARENT}; to train it again, delete it"
            raise RunError(f"{child}: {text}")


def check_strangers(runs: Mapping[str, ResolvedRun], home: ExperimentDirectory) -> None:
    """ConfigError if it cannot be an experiment's, or holds runs of another one."""
    check_place(home.path, [home.run(name).path for name in runs])
    strangers = [d.path.name for d in home.runs() if d.path.name not in runs]
    allowed = f"holds runs of another experiment: {', '.join(strangers)}"
    require(not strangers, "workdir", str(home.path), allowed)
    allowed = "is the directory of a sweep, whose jobs have their own"
    require(not is_sweep(home.path), "workdir", str(home.path), allowed)
    is_run = home.has_config() and RunDirectory(home.path).has_lineage()
    require(not is_run, "workdir", str(home.path), "is the directory of a run")


def check_place(path: Path, runs: list[Path]) -> None:
    """ConfigError unless directories can be here, and none is inside of a run's."""
    name = str(path)
    try:
        for place in (path, *path.parents, *runs, *(p / "checkpoints" for p in runs)):
            is_free = place.is_dir() or not (place.exists() or place.is_symlink())
            require(is_free, "workdir", name, f"{place} must be a directory")
    except OSError as error:  # of a name that is too long, say
        reason = error.strerror or str(error)
        raise ConfigError("workdir", name, f"cannot be: {reason}") from None
    around = [p for p in path.resolve().parents if RunDirectory(p).has_lineage()]
    allowed = f"is inside the directory of a run, {around[0] if around else ''}"
    require(not around, "workdir", name, allowed)


# What may change of a run that has trained: the schedule from here on, the layout, and
# where the prompts of evaluation are; their digest stays.
FREE = ("schedule.", "population.", "mesh.", "eval_file.path")


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
        field, value = field_of(name, found[0].path), found[0].new
        if field == "eval_file":
            value = run.eval_file.path
        last = " (the last step of the parent, unless it is given)"
        implied = last * (found[0].path == "parent.step" and bool(run.parent.sibling))
        told = f"{where}: {lines_of(found)}{implied}"
        raise ConfigError(field, value, told)
    order = [*run.axes]  # that of the members
    is_same, allowed = order == [*there.axes], f"{where}: {[*there.axes]}"
    require(is_same, f"runs.{name}.axes", order, allowed)
    steps, trained = run.schedule.num_steps, directory.trained_steps()
    if steps < trained:
        directory.verified_finish()  # or its files only say that it is further
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
    if directory.trained_steps() <= 0 or directory.verified_finish() is None:
        return False
    return directory.read_config().schedule.num_steps == run.schedule.num_steps


# Of a schedule, what leaves nothing behind.
PASSING = ("num_steps", "chunk_seconds")


def tell_ended(name: str, run: ResolvedRun, directory: RunDirectory) -> None:
    """A run that has ended stays as it is; says so if now it would be another one.

    It records and saves nothing again, and the user's own code may not be as it was.
    """
    before = directory.read_config()
    was, now = to_dict(before.schedule), to_dict(run.schedule)
    found = [d for d in differences(was, now) if d.path not in PASSING]
    for part in ("population", "mesh"):
        was, now = to_dict(getattr(before, part)), to_dict(getattr(run, part))
        found += differences(was, now, part)
    found += edited_code(directory.read_lineage().last_process)
    if found:
        told = f"{name} has ended and stays as it is: {lines_of(found)}"
        Report(name).warn(told)


def check_start(
    name: str,
    run: ResolvedRun,
    directory: RunDirectory,
    before: dict[str, ResolvedRun],
) -> None:
    """ConfigError unless the parent is there, or is among those run before."""
    sibling, parent = run.parent.sibling, parent_of(run, directory)
    if sibling in before:  # what it has, and what it will have saved
        there, schedule = parent.saved_steps(), before[sibling].schedule
        newest = max(there, default=-1)  # records may be further: it was killed then
        to_come = [s for s in schedule.saved_steps() if s > newest]
        to_stay = {*schedule.kept_steps({*there, *to_come})}
        to_stay |= kept_as_it_grows(before[sibling], parent)
        check_steps(name, run, {*run.parent_steps}, sorted(to_stay))
        return
    if not sibling and is_hf_folder(parent.path):
        check_folder(name, run, HfFolder(parent.path))
        return
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
    lineage = parent.read_lineage()  # the run's own will continue it
    check_settings(lineage, f"its parent, {where},")
    parent.verified_finish()
    if edited := edited_code(lineage.last_process):
        Report(name).warn(f"its parent trained with other code: {lines_of(edited)}")
    wanted, saved = {*steps_of_parent(run, parent)}, parent.saved_steps()
    check_reached(parent, wanted)
    is_ready = parent.read_finished() is not None or wanted <= {*saved}
    allowed = "is not finished; parent_step can name one of its checkpoints: "
    require(is_ready, field, where, allowed + listed(saved))
    check_parent(name, run, parent.read_config(), where)
    check_steps(name, run, wanted, saved)
    with parent.saved() as checkpoints:
        for step in sorted(wanted):
            checkpoints.read(step)  # whole: other stages may train before it is used


def check_folder(name: str, run: ResolvedRun, folder: HfFolder) -> None:
    """ConfigError unless a run can start from a Hugging Face model."""
    allowed = "must be left out: a Hugging Face model has no steps and no members"
    has_steps = {*run.parent_steps} != {-1}
    require(not has_steps, f"runs.{name}.parent_step", run.parent_steps[0], allowed)
    pinned = dict(run.parent.member)
    require(not pinned, f"runs.{name}.parent_member", pinned, allowed)
    with under_run(name):
        folder.check(run.model, run.task.make())
    folder.check_types()  # so that all files can be read


def execute(
    job: Job, log: Sequence[str], quiet: bool, should_stop: Callable[[], bool]
) -> None:
    """Run one stage from where it stands to its end."""
    name, run, directory, program, _ = job
    warn = Report(name).warn
    with directory.checkpoints(run) as checkpoints:
        started = start(run, directory, program, checkpoints, warn)
        states, metrics, step, recorded, note = started
        report = Report(
            name,
            run.schedule.num_steps,
            max(step, 0),
            run.stage.sequences_per_step * len(program.labels),
            quiet,
        )
        members = f"{len(program.labels)} members on {program.layout}"
        report.line(f"{name}: {members}, {note}")
        files = (checkpoints, directory.metrics)
        kind = kind_of(type(run.stage))
        meet("what the run is now is written")
        kept = () if run.schedule.max_to_keep else directory.read_lineage().kept
        training = Training(kind, run.schedule, program, *files, report, kept)
        with closing(report), followed(log if is_first() else (), run, directory):
            states = training.run(states, metrics, step, recorded, should_stop)
    directory.write_finished(states)
    meet("the run has ended")


def check_settings(lineage: Lineage, who: str = "the run") -> None:
    """ConfigError for a setting of JAX under which the run would be another one."""
    was, now = lineage.last_process.settings, settings()
    for name in DECISIVE:
        allowed = f"must be {was.get(name)}, as when {who} began"
        require(was.get(name) == now[name], name.upper(), now[name], allowed)
