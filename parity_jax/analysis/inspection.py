"""What is in a checkpoint, as plain data (numbers, text, lists, dicts).

`inspect_run` gathers all of it; `parity-jax inspect` only prints.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from parity_jax.analysis.answers import (
    DECODINGS,
    describe_answer,
    make_answer,
    prompt_text,
)
from parity_jax.analysis.samples import answered_rows, summary
from parity_jax.analysis.snapshot import Snapshot
from parity_jax.config import (
    ConfigError,
    differences,
    kind_of,
    label_text,
    require,
    to_dict,
)
from parity_jax.experiment import RunConfig
from parity_jax.runs.checkpoint import from_arrays, subtree
from parity_jax.runs.directory import ExperimentDirectory, RunDirectory
from parity_jax.runs.execute import check_settings
from parity_jax.runs.lineage import ParentEntry
from parity_jax.runs.metrics_file import Record, numbers
from parity_jax.runs.resolve import (
    make_program,
    order_of_execution,
    resolved_file,
)
from parity_jax.runs.start import compared_content
from parity_jax.runs.sweep import SweepDirectory
from parity_jax.tasks import Text
from parity_jax.types import RUNNING, STATUS_TEXT


def inspect_run(
    snapshot: Snapshot, evaluate: bool, num_prompts: int, max_members: int
) -> dict[str, Any]:
    """Everything about a checkpoint; responses of the first max_members only."""
    directory, run = snapshot.directory, snapshot.whole
    return {
        "directory": str(directory.path),
        "stage": kind_of(type(run.stage)),
        "step": snapshot.step,
        "steps": snapshot.steps,
        "num_steps": run.schedule.num_steps,
        "finished": directory.verified_finish() is not None,
        "lineage": ancestry(directory),
        "config": to_dict(run),
        "differs_from_parent": config_changes(snapshot),
        "parameters": parameter_table(snapshot),
        "members": members(snapshot),
        "scores": rescored(snapshot) if evaluate else recorded_scores(snapshot),
        "responses": responses(snapshot, num_prompts, max_members),
    }


def inspect_experiment(home: ExperimentDirectory) -> dict[str, Any]:
    """Where every run of an experiment stands."""
    experiment = home.read_config()
    for name in experiment.runs:
        home.check_run(name)
    runs = [
        run_summary(home.run(name), experiment.runs[name])
        for name in order_of_execution(experiment)
    ]
    return {"directory": str(home.path), "runs": runs}


def inspect_sweep(home: SweepDirectory) -> dict[str, Any]:
    """Where every run of every experiment of a sweep stands; none of one not begun."""
    experiments = {
        name: inspect_experiment(each)["runs"] if each.has_config() else []
        for name, each in home.experiments().items()
    }
    return {"directory": str(home.path), "experiments": experiments}


def run_summary(directory: RunDirectory, config: RunConfig) -> dict[str, Any]:
    """A run in a few numbers; one that has not begun has no steps and no scores."""
    steps: list[int] = []
    members: list[str] = []
    record = None
    if directory.has_config():
        steps = directory.saved_steps()
        members = [label_text(label) for label in directory.read_config().labels]
    if steps:
        record = directory.metrics.last_evaluation(steps[-1], len(members))
    return {
        "name": directory.path.name,
        "stage": kind_of(type(config.stage)),
        "parent": config.parent or None,
        "steps": steps,
        "num_steps": config.num_steps,
        "finished": directory.verified_finish() is not None,
        "members": members,
        "scores": None if record is None else scores_of("recorded", record),
    }


def scores_of(source: str, record: Record) -> dict[str, Any]:
    """An evaluation: by the score's name the numbers of all members."""
    return {"source": source, "step": record.step, "values": record.values}


def parent_directory(directory: RunDirectory, parent: ParentEntry) -> RunDirectory:
    """Where the parent of a run is: beside it, if it is of the same experiment or both
    moved, or as recorded.
    """
    recorded, sibling = Path(parent.run), directory.read_config().parent.sibling
    beside = directory.path.resolve().parent / (sibling or recorded.name)
    is_beside = beside.exists() if sibling else not recorded.exists()
    return RunDirectory(beside if is_beside else recorded)


def ancestry(directory: RunDirectory) -> list[dict[str, Any]]:
    """The run, its parent, and so on back to scratch: lineage.json of each.

    With it `step`, where the run before started in this one (the steps, if its members
    started from several), and `content`, whether the parameters there are still what
    that run recorded: "unchanged", "CHANGED", "damaged" or "not found".
    """
    line: list[dict[str, Any]] = []
    seen: set[Path] = set()
    entry: dict[str, Any] = {"run": str(directory.path), "step": None, "content": None}
    while True:
        seen.add(directory.path.resolve())
        lineage = directory.read_lineage()
        rest = {k: v for k, v in to_dict(lineage).items() if k != "parent"}
        line.append(entry | rest)
        if lineage.parent is None:
            return line
        parent = parent_directory(directory, lineage.parent)
        content = compared_content(parent, lineage.parent)
        if parent.path.resolve() in seen:  # of the same name, at the parent's place
            content = "not found"
        where = lineage.parent.run if content == "not found" else str(parent.path)
        step = list(lineage.parent.step)
        entry = {"run": where, "step": step, "content": content}
        if content == "not found":
            return [*line, entry]
        directory = parent


def config_changes(snapshot: Snapshot) -> dict[str, list[Any]] | None:
    """Fields that differ from the parent's: name -> [there, here].

    None where there is no parent. Of another kind of stage only the kind is told: its
    own options are in its config.
    """
    entry = snapshot.directory.read_lineage().parent
    parent = None if entry is None else parent_directory(snapshot.directory, entry)
    if parent is None or not parent.has_config():
        return None
    found = differences(to_dict(parent.read_config()), to_dict(snapshot.whole))
    kind = "stage.kind"
    hidden = "stage." if kind in {d.path for d in found} else "-"
    return {
        d.path: [d.old, d.new]
        for d in found
        if d.path == kind or not d.path.startswith(hidden)
    }


def parameter_table(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Path, shape, type and size of every parameter, and its norm in each member."""
    table = []
    for name, array in subtree(snapshot.arrays, "params").items():
        flat = array.reshape(len(array), -1).astype(np.float64)
        table.append(
            {
                "path": name,
                "shape": list(array.shape[1:]),
                "dtype": str(array.dtype),
                "size": int(array[0].size),
                "norm": numbers(np.linalg.norm(flat, axis=1)),
            }
        )
    return table


def members(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Health of the chosen members: what they do and which leaves are not finite."""
    arrays, end = snapshot.arrays, snapshot.whole.schedule.num_steps
    out = []
    for i, label in enumerate(snapshot.run.labels):
        status, step = int(arrays["status"][i]), int(arrays["step"][i])
        has_ended = status == RUNNING and step == end
        floats = {k: x[i] for k, x in arrays.items() if x.dtype.kind == "f"}
        bad = [name for name, x in floats.items() if not np.isfinite(x).all()]
        out.append(
            {
                "member": label_text(label),
                "axes": label,
                "step": step,
                "status": "finished" if has_ended else STATUS_TEXT[status],
                "frozen": status != RUNNING,
                "non_finite": bad,
            }
        )
    return out


def recorded_scores(snapshot: Snapshot) -> dict[str, Any] | None:
    """The run's last evaluation at or before the step; None if there is none yet."""
    metrics, places = snapshot.directory.metrics, snapshot.places
    record = metrics.last_evaluation(snapshot.step, len(snapshot.whole.labels))
    if record is None:
        return None
    values = {name: [row[i] for i in places] for name, row in record.values.items()}
    return scores_of("recorded", record._replace(values=values))


def rescored(snapshot: Snapshot) -> dict[str, Any]:
    """The evaluation that the run itself makes at this step, made again."""
    check_settings(snapshot.directory.read_lineage())
    file = snapshot.run.eval_file
    allowed = "holds other prompts than those of the run's own evaluation"
    require(resolved_file(file.path) == file, "eval_file", file.path, allowed)
    program = make_program(snapshot.run)
    template = jax.eval_shape(program.init, None)
    metrics = program.scores(program.place(from_arrays(snapshot.arrays, template)))
    values = {name: numbers(mean.value()) for name, mean in metrics.items()}
    record = Record("eval", snapshot.step, 0.0, values)
    return scores_of("evaluated again", record)


def sampled_rows(
    snapshot: Snapshot, num_rows: int, num_samples: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Answers of all chosen members to the test rows, and by member their summary.

    ConfigError of a task without rows, or of fewer.
    """
    task = snapshot.task
    kind, allowed = kind_of(type(snapshot.run.task)), "must be text for --samples"
    if not isinstance(task, Text):
        raise ConfigError("task.kind", kind, allowed)
    num_test = len(task.eval_prompts.token)
    allowed = f"must be at most {num_test}, the test rows"
    require(num_rows <= num_test, "rows", num_rows, allowed)
    rows, summaries = [], {}
    for i, label in enumerate(snapshot.run.labels):
        own = answered_rows(
            task, snapshot.model, snapshot.params(i), num_rows, num_samples
        )
        name = label_text(label)
        found = [*track(own, name)]
        rows += [{"member": name} | row for row in found]
        summaries[name] = summary(found)
    return rows, summaries


def track(rows: Iterator[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    """The rows, counted on the terminal."""
    console = Console(stderr=True, emoji=False)
    done = 0
    with console.status("") as status:
        for done, row in enumerate(rows, 1):
            status.update(f"{name}: {done} rows answered")
            yield row


def responses(
    snapshot: Snapshot, num_prompts: int, max_members: int
) -> list[dict[str, Any]]:
    """Greedy and sampled (temperature 1) responses of members to the same prompts."""
    if num_prompts == 0:
        return []
    task = snapshot.task
    k_prompt, k_sample = jax.random.split(jax.random.key(0))
    prompt = task.sample_prompts(k_prompt, num_prompts, task.data)
    answer = make_answer(task, snapshot.model)
    out = []
    for i, label in enumerate(snapshot.run.labels[:max_members]):
        answers = answer(k_sample, snapshot.params(i), prompt, 1.0)
        for b, g in np.ndindex(answers.length.shape):
            head = {
                "member": label_text(label),
                "prompt": prompt_text(task, prompt, b),
                "decoding": DECODINGS[g],
            }
            out.append(head | describe_answer(task, answers, b, g))
    return out
