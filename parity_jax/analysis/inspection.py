"""What is in a checkpoint, as plain data (numbers, text, lists, dicts).

`inspect_run` gathers all of it; `experiments.inspect` only prints.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from parity_jax.answers import DECODINGS, describe_answer, make_answer
from parity_jax.checkpoint import (
    CheckpointError,
    Checkpoints,
    digest,
    from_arrays,
    subtree,
)
from parity_jax.config import ConfigError, Experiment, from_dict
from parity_jax.results import METRICS, RunError, read_json, read_records
from parity_jax.runs import build, is_finished, order_of_execution
from parity_jax.snapshot import RUN, Snapshot, member_text, read_config
from parity_jax.types import RUNNING, STATUS_TEXT


def inspect_run(
    snapshot: Snapshot, evaluate: bool, num_prompts: int, max_members: int
) -> dict[str, Any]:
    """Everything about a checkpoint; responses of the first max_members only."""
    directory, config = snapshot.directory, snapshot.config
    parent = parent_directory(directory)
    return {
        "directory": str(directory),
        "stage": config["run"]["stage"]["kind"],
        "step": snapshot.step,
        "steps": snapshot.steps,
        "num_steps": config["run"]["num_steps"],
        "finished": is_finished(directory),
        "lineage": ancestry(directory),
        "config": config,
        "differs_from_parent": config_changes(parent, config) if parent else None,
        "parameters": parameter_table(snapshot),
        "members": members(snapshot),
        "scores": rescored(snapshot) if evaluate else recorded_scores(snapshot),
        "responses": responses(snapshot, num_prompts, max_members),
    }


def inspect_experiment(directory: Path) -> dict[str, Any]:
    """Where every stage of an experiment stands."""
    config = read_config(directory)
    try:
        names = order_of_execution(from_dict(Experiment, config))
    except ConfigError as error:
        raise RunError(f"{directory}/config.json: {error}") from None
    stages = [stage_summary(directory / name, config["runs"][name]) for name in names]
    return {"directory": str(directory), "stages": stages}


def stage_summary(directory: Path, run: dict[str, Any]) -> dict[str, Any]:
    """A stage in a few numbers; those of an unstarted one are None."""
    checkpoints = Checkpoints(directory, read_only=True)
    steps = checkpoints.steps()
    checkpoints.close()
    return {
        "name": directory.name,
        "stage": run["stage"]["kind"],
        "parent": run["parent"] or None,
        "steps": steps,
        "num_steps": run["num_steps"],
        "finished": is_finished(directory),
        "scores": last_record(directory, steps[-1]) if steps else None,
    }


def parent_directory(directory: Path) -> Path | None:
    """Where the parent of a run is: as recorded, or beside the run if both moved."""
    parent = read_json(directory / "lineage.json")["parent"]
    if parent is None:
        return None
    recorded = Path(parent["run"])
    beside = directory.resolve().parent / recorded.name
    return beside if beside.exists() and not recorded.exists() else recorded


def ancestry(directory: Path) -> list[dict[str, Any]]:
    """The run, its parent, and so on back to scratch.

    `step` is where the run before started in this one (a list of steps if its members
    started from several), `content` whether the parameters there are still what that
    run recorded: "unchanged", "CHANGED" or "not found".
    """
    line: list[dict[str, Any]] = []
    run: Path | None = directory
    step, content = None, None
    while run is not None:
        entry = {"run": str(run), "step": step, "content": content}
        if content == "not found":
            return [*line, entry]
        lineage = read_json(run / "lineage.json")
        line.append(entry | {k: v for k, v in lineage.items() if k != "parent"})
        run, parent = parent_directory(run), lineage["parent"]
        if run is not None:
            step = parent["step"]
            content = compare_content(run, step, parent["params_sha256"])
    return line


def compare_content(parent: Path, step: Any, expected: Any) -> str:
    """Whether the parameters at a step (or several) have the digests of the lineage."""
    if not (parent / "config.json").exists():
        return "not found"
    steps, hashes = (x if isinstance(x, list) else [x] for x in (step, expected))
    checkpoints = Checkpoints(parent, read_only=True)
    try:
        if not {*steps} <= {*checkpoints.steps()}:
            return "not found"
        found = [digest(subtree(checkpoints.read(n), "params")) for n in steps]
    except CheckpointError:  # damaged
        return "CHANGED"
    finally:
        checkpoints.close()
    return "unchanged" if found == hashes else "CHANGED"


def config_changes(parent: Path, config: dict[str, Any]) -> dict[str, list[Any]] | None:
    """Fields that differ from the parent's: name -> [there, here].

    Of another kind of stage only the kind is told: its own options are in its config.
    """
    if not (parent / "config.json").exists():
        return None
    old, new = (flatten_dict(c, sep=".") for c in (read_config(parent), config))
    kind = "run.stage.kind"
    hidden = "run.stage." if old[kind] != new[kind] else "-"
    return {
        name: [old.get(name), new.get(name)]
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
        and (name == kind or not name.startswith(hidden))
    }


def parameter_table(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Path, shape, type and size of every parameter, and its norm in each member."""
    table = []
    for name, array in subtree(snapshot.arrays, "params").items():
        norm_P = np.linalg.norm(
            array.reshape(len(array), -1).astype(np.float64), axis=1
        )
        table.append(
            {
                "path": name,
                "shape": list(array.shape[1:]),
                "dtype": str(array.dtype),
                "size": int(array[0].size),
                "norm": [_number(x) for x in norm_P],
            }
        )
    return table


def members(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Health of the chosen members: what they do and which leaves are not finite."""
    arrays = snapshot.arrays
    out = []
    for i, label in enumerate(snapshot.labels):
        status = int(arrays["status"][i])
        floats = {k: x[i] for k, x in arrays.items() if x.dtype.kind == "f"}
        bad = [name for name, x in floats.items() if not np.isfinite(x).all()]
        out.append(
            {
                "member": member_text(label),
                "axes": label,
                "step": int(arrays["step"][i]),
                "status": STATUS_TEXT[status],
                "frozen": status != RUNNING,
                "non_finite": bad,
            }
        )
    return out


def recorded_scores(snapshot: Snapshot) -> dict[str, Any] | None:
    """The run's last evaluation at or before the step."""
    record = last_record(snapshot.directory, snapshot.step)
    if record is None:
        return None
    values = {
        name: [all_P[i] for i in snapshot.places]
        for name, all_P in record["values"].items()
    }
    return {"source": "recorded", "step": record["step"], "values": values}


def last_record(directory: Path, step: int) -> dict[str, Any] | None:
    """The last evaluation of a run at or before a step."""
    records = read_records(directory / METRICS)
    found = [r for r in records if r["split"] == "eval" and r["step"] <= step]
    return found[-1] if found else None


def rescored(snapshot: Snapshot) -> dict[str, Any]:
    """The evaluation that the run itself makes at this step, made again."""
    population = build(snapshot.experiment, RUN)
    template = jax.eval_shape(population.init, None)
    metrics = population.evaluate(from_arrays(snapshot.arrays, template))
    values = {
        name: [_number(x) for x in np.asarray(mean.value())]
        for name, mean in metrics.items()
    }
    return {"source": "evaluated again", "step": snapshot.step, "values": values}


def responses(
    snapshot: Snapshot, num_prompts: int, max_members: int
) -> list[dict[str, Any]]:
    """Greedy and sampled (temperature 1) responses of members to the same prompts."""
    if num_prompts == 0:
        return []
    task = snapshot.task
    k_prompt, k_sample = jax.random.split(jax.random.key(0))
    prompt_BxL = task.sample_prompts(k_prompt, num_prompts)
    answer = make_answer(snapshot)
    out = []
    for i, label in enumerate(snapshot.labels[:max_members]):
        answers = answer(k_sample, snapshot.params(i), prompt_BxL, jnp.float32(1.0))
        for b, g in np.ndindex(answers.length.shape):
            head = {
                "member": member_text(label),
                "prompt": task.to_text(prompt_BxL[b]),
                "decoding": DECODINGS[g],
            }
            out.append(head | describe_answer(task, answers, b, g))
    return out


def _number(x: Any) -> float | None:
    return float(x) if np.isfinite(x) else None
