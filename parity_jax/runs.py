"""Runs of an experiment: directories, lineage, and where a run starts.

A run directory holds config.json (everything that defines the run), lineage.json,
checkpoints/, metrics.jsonl and, when the run is complete, finished.json.
"""

import dataclasses
import datetime
import importlib.metadata
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from parity_jax.checkpoint import (
    Arrays,
    Checkpoints,
    digest,
    from_arrays,
    subtree,
)
from parity_jax.config import (
    ConfigError,
    Experiment,
    RunConfig,
    check_hypers,
    to_dict,
)
from parity_jax.evaluate import make_evaluate, read_prompts
from parity_jax.loop import train
from parity_jax.models import make_model
from parity_jax.population import (
    Axes,
    Population,
    make_population,
    member_labels,
    parent_index,
)
from parity_jax.progress import Report
from parity_jax.results import MetricsFile, read_json, write_json
from parity_jax.stages import make_stage
from parity_jax.tasks import make_task
from parity_jax.types import Hypers, Params, StageState

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def run_experiment(experiment: Experiment, workdir: Path, quiet: bool = False) -> None:
    """Execute or continue all runs of an experiment, in order.

    Everything is checked before anything is written; a directory that holds another
    experiment is refused. Complete runs are skipped.
    """
    names = order_of_execution(experiment)
    for name in names:
        check_run(experiment, name)
    claim_directory(workdir, to_dict(experiment))
    for name in names:
        if not (workdir / name / "finished.json").exists():
            execute(experiment, name, workdir, quiet)


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
        values = {k: v for k, v in label.items() if k != "seed"}
        try:
            check_hypers(dataclasses.replace(run.hypers, **values))
        except ConfigError as error:
            raise error.under(f"runs.{name}.hypers") from None
    build(experiment, name)
    if not run.parent:
        return
    if run.parent in experiment.runs:
        parent = describe(experiment, run.parent)
    else:
        others = ", ".join(n for n in experiment.runs if n != name)
        allowed = f"must be another run ({others}) or a run directory"
        if not (Path(run.parent) / "config.json").exists():
            raise ConfigError(f"runs.{name}.parent", run.parent, allowed)
        parent = read_json(Path(run.parent) / "config.json")
    own = normalised(describe(experiment, name))
    different = differing_fields(normalised(parent), own, ("task", "model"))
    if different:
        raise ConfigError(f"runs.{name}.parent", run.parent, "; ".join(different))


def normalised(config: Any) -> Any:
    """As it would come back from JSON: tuples are lists."""
    if isinstance(config, Mapping):
        return {k: normalised(v) for k, v in config.items()}
    return (
        [normalised(v) for v in config] if isinstance(config, tuple | list) else config
    )


def differing_fields(old: Any, new: Any, below: tuple[str, ...] = ()) -> list[str]:
    """One line for each field that differs, e.g. "model.depth is 2 there, 4 here"."""
    lines: list[str] = []

    def compare(path: str, a: Any, b: Any) -> None:
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted({*a, *b}):
                compare(f"{path}.{key}" if path else key, a.get(key), b.get(key))
        elif a != b:
            lines.append(f"{path} is {a!r} there, {b!r} here")

    for key in below or ("",):
        compare(key, old[key] if key else old, new[key] if key else new)
    return lines


def claim_directory(directory: Path, config: dict[str, Any]) -> None:
    """Make the directory this experiment's, or refuse it if it is another's."""
    path, config = directory / "config.json", normalised(config)
    if path.exists():
        different = differing_fields(read_json(path), config)
        if different:
            allowed = f"holds another configuration: {'; '.join(different)}"
            raise ConfigError("workdir", str(directory), allowed)
        return
    directory.mkdir(parents=True, exist_ok=True)
    write_json(path, config)


def build(experiment: Experiment, name: str) -> Population:
    """The compiled functions of a run; ConfigError if there is no such run."""
    run, axes = experiment.runs[name], all_axes(experiment, experiment.runs[name])
    task = make_task(run.task or experiment.task)
    model = make_model(run.model or experiment.model, task)
    file = experiment.eval_file
    prompts = read_prompts(file, task) if file else None
    evaluate = make_evaluate(experiment.evaluate, task, model, prompts)
    p_long = max_p_long(run.hypers, axes)
    try:
        stage = make_stage(run.stage, task, model, evaluate, p_long)
    except ConfigError as error:
        raise error.under(f"runs.{name}.stage") from None
    return make_population(experiment.population, stage, axes, run.hypers)


def max_p_long(hypers: Hypers, axes: Axes) -> float:
    """The largest share of long demonstrations that any member can have."""
    shares = [max(axes.get(n, (getattr(hypers, n),))) for n in ("p_cot", "p_leap")]
    return min(sum(shares), 1.0)


def execute(experiment: Experiment, name: str, workdir: Path, quiet: bool) -> None:
    """Run one stage from where it stands to its end."""
    run, directory = experiment.runs[name], workdir / name
    claim_directory(directory, describe(experiment, name))
    population = build(experiment, name)
    checkpoints = Checkpoints(directory)
    states, step, note = start(experiment, name, workdir, population, checkpoints)
    report = Report(name, run.num_steps, max(step, 0), quiet)
    report.line(f"{name}: {len(population.labels)} members, {note}")
    metrics_file = MetricsFile(directory)
    metrics_file.rewind(step)
    try:
        states = train(run, population, states, step, checkpoints, metrics_file, report)
    finally:
        report.close()
        checkpoints.close()
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
) -> tuple[StageState, int, str]:
    """States, step (-1: fresh), note: own checkpoint, else parent, else scratch."""
    run, warn = experiment.runs[name], Report(name, 0, 0, quiet=True).warn
    own = checkpoints.read_latest(warn)
    if own is not None:
        template = jax.eval_shape(population.init, None)
        return from_arrays(own[1], template), own[0], f"continuing at step {own[0]}"
    if not run.parent:
        write_lineage(checkpoints, None)
        return population.init(None), -1, "from scratch"
    is_own = run.parent in experiment.runs
    parent = workdir / run.parent if is_own else Path(run.parent)
    params_P, lineage = parent_params(parent, run.parent_step, population)
    write_lineage(checkpoints, lineage)
    note = f"from {run.parent} at step {lineage['step']}"
    return population.init(params_P), -1, note


def parent_params(
    parent: Path, step: int, population: Population
) -> tuple[Params, dict[str, Any]]:
    """For every member the parameters of its parent, and the parent's lineage entry."""
    checkpoints = Checkpoints(parent)
    step = checkpoints.steps()[-1] if step < 0 else step
    arrays: Arrays = subtree(checkpoints.read(step), "params")
    checkpoints.close()
    axes = read_json(parent / "config.json")["axes"]
    index_P = parent_index(population.labels, member_labels(axes))
    own_P = {name: array[index_P] for name, array in arrays.items()}
    template = jax.eval_shape(population.init, None).params
    lineage = {"run": str(parent), "step": step, "params_sha256": digest(arrays)}
    return from_arrays(own_P, template), lineage


def write_lineage(checkpoints: Checkpoints, parent: dict[str, Any] | None) -> None:
    """Where the run comes from and what it runs on."""
    device = jax.devices()[0]
    lineage = {
        "parent": parent,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": f"{device.platform}: {device.device_kind} x {jax.device_count()}",
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": git_commit(),
    }
    write_json(checkpoints.directory.parent / "lineage.json", lineage)


def git_commit() -> str | None:
    """The commit of this code with a "+" if files differ from it; None outside git."""
    where = Path(__file__).parent

    def git(*args: str) -> str:
        command = ["git", "-C", str(where), *args]
        out = subprocess.run(command, check=False, capture_output=True, text=True)
        return out.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return (commit + "+" * bool(git("status", "--porcelain"))) or None
