"""Runs of an experiment: directories, lineage, and where a run starts.

A run directory holds config.json (everything that defines the run), lineage.json,
checkpoints/, metrics.jsonl and, when the run is complete, finished.json.

The guarantee: however a run is interrupted, the same command continues from its newest
whole checkpoint and ends with the checkpoints, metrics (but their seconds) and claims
that it would have ended with, bit for bit. The limits: the same versions of code and
packages, the same kind and number of devices, the same `population` layout. Across them
results agree to rounding; lineage.json says who did what, and continuing warns.
Damaged files are never used: an older checkpoint is, with a warning, or a RunError says
what is wrong.
"""

import dataclasses
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from parity_jax import lineage
from parity_jax.checkpoint import Checkpoints, from_arrays
from parity_jax.config import (
    HYPER_BOUNDS,
    ConfigError,
    Experiment,
    RunConfig,
    check_hypers,
    require,
    to_dict,
)
from parity_jax.evaluate import make_evaluate, read_prompts
from parity_jax.interrupt import StoppedError, never
from parity_jax.lineage import differing_fields, normalised
from parity_jax.loop import train
from parity_jax.models import make_model
from parity_jax.population import (
    Population,
    make_population,
    member_labels,
    parent_index,
)
from parity_jax.progress import Report
from parity_jax.results import MetricsFile, RunError, lock, read_json, write_json
from parity_jax.stages import make_stage
from parity_jax.tasks import make_task
from parity_jax.types import StageState


def run_experiment(
    experiment: Experiment,
    workdir: Path,
    quiet: bool = False,
    should_stop: Callable[[], bool] = never,
) -> None:
    """Execute or continue all runs of an experiment, in order.

    Everything is checked before anything is written; a directory that holds another
    experiment is refused, and one that another process works in (RunError). Complete
    runs are skipped. When `should_stop` says so, the run in progress saves its state
    and StoppedError is raised.
    """
    names = order_of_execution(experiment)
    for name in names:
        check_run(experiment, name)
    check_directory(workdir, to_dict(experiment))
    workdir.mkdir(parents=True, exist_ok=True)
    with lock(workdir):
        claim_directory(workdir, to_dict(experiment))
        for name in [n for n in names if not is_finished(workdir / n)]:
            if should_stop():
                raise StoppedError(f"stopped before {name}")
            execute(experiment, name, workdir, quiet, should_stop)


def is_finished(directory: Path) -> bool:
    """Whether a run is complete; RunError if the file that says so is damaged."""
    path = directory / "finished.json"
    return path.exists() and bool(read_json(path))


def order_of_execution(experiment: Experiment) -> list[str]:
    """The runs, parents first."""
    names: list[str] = []

    def add(name: str, children: tuple[str, ...]) -> None:
        if name in children:
            cycle = " -> ".join((*children, name))
            raise ConfigError(f"runs.{name}.parent", cycle, "must not be a circle")
        parent = experiment.runs[name].parent
        if parent in experiment.runs:
            add(parent, (*children, name))
        if name not in names:
            names.append(name)

    for name in experiment.runs:
        add(name, ())
    return names


def describe(experiment: Experiment, name: str) -> dict[str, Any]:
    """What defines a run, as its config.json holds it."""
    run = experiment.runs[name]
    whole = to_dict(experiment)
    return {
        "task": to_dict(run.task or experiment.task),
        "model": to_dict(run.model or experiment.model),
        "axes": all_axes(experiment, run),
        "evaluate": whole["evaluate"],
        "eval_file": whole["eval_file"],
        "run": {k: v for k, v in whole["runs"][name].items() if k != "axes"},
    }


def all_axes(experiment: Experiment, run: RunConfig) -> dict[str, tuple[float, ...]]:
    """The experiment's axes and the run's own, seed last (it varies fastest)."""
    axes = {**experiment.axes, **run.axes}
    return {k: v for k, v in axes.items() if k != "seed"} | {"seed": axes["seed"]}


def check_run(experiment: Experiment, name: str) -> None:
    """ConfigError if the run cannot be: its members' numbers, rewards or parent."""
    run = experiment.runs[name]
    for label in member_labels(all_axes(experiment, run)):
        values = {k: v for k, v in label.items() if k in HYPER_BOUNDS}
        try:
            check_hypers(dataclasses.replace(run.hypers, **values))
        except ConfigError as error:
            raise error.under(f"runs.{name}.hypers") from None
    build(experiment, name)
    if run.parent:
        check_parent(experiment, name)


def check_parent(experiment: Experiment, name: str) -> None:
    """ConfigError unless every member has a parent, at a step that it saves."""
    run = experiment.runs[name]
    if run.parent in experiment.runs:
        parent = normalised(describe(experiment, run.parent))
        parent_run = experiment.runs[run.parent]
        steps_known = parent_run.kept_steps(parent_run.scheduled_steps())
    else:
        others = ", ".join(n for n in experiment.runs if n != name)
        allowed = f"must be another run ({others}) or a run directory"
        directory = Path(run.parent)
        is_run = (directory / "config.json").exists()
        require(is_run, f"runs.{name}.parent", run.parent, allowed)
        parent = read_json(directory / "config.json")
        steps_known = tuple(Checkpoints(directory, read_only=True).steps())
    own = normalised(describe(experiment, name))
    different = differing_fields(parent, own, ("task", "model"))
    require(not different, f"runs.{name}.parent", run.parent, "; ".join(different))
    labels = member_labels(all_axes(experiment, run))
    for step in sorted({*lineage.parent_steps(run, labels)} - {-1}):
        allowed = f"must be a checkpoint of the parent: {steps_known}"
        require(step in steps_known, f"runs.{name}.parent_step", step, allowed)
    try:
        parent_index(labels, run.hypers, parent["axes"], run.parent_member)
    except ConfigError as error:
        raise error.under(f"runs.{name}") from None


def check_directory(directory: Path, config: dict[str, Any]) -> None:
    """ConfigError if the directory holds another experiment or run."""
    path = directory / "config.json"
    if path.exists():
        different = differing_fields(read_json(path), normalised(config))
        allowed = f"holds another configuration: {'; '.join(different)}"
        require(not different, "workdir", str(directory), allowed)


def claim_directory(directory: Path, config: dict[str, Any]) -> None:
    """Make the directory this experiment's, or refuse it if it is another's."""
    check_directory(directory, config)
    path = directory / "config.json"
    if not path.exists():
        if (directory / "checkpoints").exists():
            raise RunError(f"{path}: missing, but there are checkpoints")
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, normalised(config))


def build(experiment: Experiment, name: str) -> Population:
    """The compiled functions of a run; ConfigError if there is no such run."""
    run, axes = experiment.runs[name], all_axes(experiment, experiment.runs[name])
    task = make_task(run.task or experiment.task)
    model = make_model(run.model or experiment.model, task)
    file = experiment.eval_file
    prompts = read_prompts(file, task) if file else None
    evaluate = make_evaluate(experiment.evaluate, task, model, prompts)
    try:
        stage = make_stage(run.stage, task, model, evaluate)
    except ConfigError as error:
        raise error.under(f"runs.{name}.stage") from None
    return make_population(experiment.population, stage, axes, run.hypers)


def execute(
    experiment: Experiment,
    name: str,
    workdir: Path,
    quiet: bool,
    should_stop: Callable[[], bool],
) -> None:
    """Run one stage from where it stands to its end."""
    run, directory = experiment.runs[name], workdir / name
    claim_directory(directory, describe(experiment, name))
    population = build(experiment, name)
    checkpoints = Checkpoints(directory)
    metrics = MetricsFile(directory)
    with closing(checkpoints):
        states, step, note = start(
            experiment, name, workdir, population, checkpoints, metrics
        )
        report = Report(name, run.num_steps, max(step, 0), quiet)
        report.line(f"{name}: {len(population.labels)} members, {note}")
        with closing(report):
            states = train(
                run, population, states, step, checkpoints, metrics, report, should_stop
            )
    finished = {
        "step": np.asarray(states.step).tolist(),
        "status": np.asarray(states.status).tolist(),
    }
    write_json(directory / "finished.json", finished)


def start(
    experiment: Experiment,
    name: str,
    workdir: Path,
    population: Population,
    checkpoints: Checkpoints,
    metrics: MetricsFile,
) -> tuple[StageState, int, str]:
    """States, step (-1: fresh), note: own checkpoint, else parent, else scratch.

    Metrics and lineage are brought to where the run starts.
    """
    run, directory = experiment.runs[name], workdir / name
    warn = Report(name, 0, 0, quiet=True).warn
    own = checkpoints.read_latest(warn)
    metrics.rewind(-1 if own is None else own[0])
    if own is not None:
        step, arrays = own
        lineage.record_continuation(directory, step, warn)
        template = jax.eval_shape(population.init, None)
        return from_arrays(arrays, template), step, f"continuing at step {step}"
    params_P, parent, note = None, None, "from scratch"
    if run.parent:
        is_own = run.parent in experiment.runs
        source = workdir / run.parent if is_own else Path(run.parent)
        params_P, parent = lineage.parent_params(source, run, population)
        note = f"from {run.parent} at step {parent['step']}"
    lineage.record_start(directory, run.stage.kind, parent)
    return population.init(params_P), -1, note
