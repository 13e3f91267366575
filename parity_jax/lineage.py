"""Where a run comes from: its parent's parameters, and lineage.json."""

import datetime
import importlib.metadata
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from parity_jax.checkpoint import Arrays, Checkpoints, digest, from_arrays, subtree
from parity_jax.config import RunConfig
from parity_jax.population import Label, Population, parent_index
from parity_jax.results import read_json, write_json
from parity_jax.types import Params

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def parent_steps(run: RunConfig, labels: list[Label]) -> list[int]:
    """For every member the step of its parent; -1 is the parent's last."""
    return [int(label.get("parent_step", run.parent_step)) for label in labels]


def parent_params(
    parent: Path, run: RunConfig, population: Population
) -> tuple[Params, dict[str, Any]]:
    """For every member the parameters of its parent, and the parent's lineage entry.

    The entry names run, step and hash of the parent's parameters; lists of steps and
    hashes if members start from several steps.
    """
    checkpoints = Checkpoints(parent, read_only=True)
    last = checkpoints.steps()[-1:] or [0]
    step_P = [last[0] if n < 0 else n for n in parent_steps(run, population.labels)]
    axes = read_json(parent / "config.json")["axes"]
    index_P = parent_index(population.labels, run.hypers, axes, run.parent_member)
    own_P: Arrays = {}
    hashes = {}
    for step in sorted(set(step_P)):
        arrays = subtree(checkpoints.read(step), "params")
        hashes[step] = digest(arrays)
        is_here_P = np.array(step_P) == step
        for name, array in arrays.items():
            shape = (len(step_P), *array.shape[1:])
            own = own_P.setdefault(name, np.empty(shape, array.dtype))
            own[is_here_P] = array[index_P[is_here_P]]
    checkpoints.close()
    template = jax.eval_shape(population.init, None).params
    steps, digests = list(hashes), list(hashes.values())
    several = len(hashes) > 1
    entry = {
        "run": str(parent),
        "step": steps if several else steps[0],
        "params_sha256": digests if several else digests[0],
    }
    return from_arrays(own_P, template), entry


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


def process() -> dict[str, Any]:
    """What this process runs on, as lineage.json records it."""
    device = jax.devices()[0]
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": f"{device.platform}: {device.device_kind} x {jax.device_count()}",
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": git_commit(),
    }


def record_start(directory: Path, stage: str, parent: dict[str, Any] | None) -> None:
    """Write lineage.json of a run that starts."""
    lineage = {"parent": parent, "stage": stage, **process(), "continued": []}
    write_json(directory / "lineage.json", lineage)


def record_continuation(
    directory: Path, step: int, warn: Callable[[str], None]
) -> None:
    """Record who continues; warn where that may cost the last bits."""
    lineage, now = read_json(directory / "lineage.json"), process()
    last = [lineage, *lineage["continued"]][-1]
    different = differing_fields(last, now, ("device", "packages", "commit"))
    if different:
        text = "; ".join(different)
        warn(f"continuing elsewhere than before, so not bit for bit: {text}")
    lineage["continued"].append({"step": step, **now})
    write_json(directory / "lineage.json", lineage)


def git_commit() -> str | None:
    """The commit of this code with a "+" if files differ from it; None outside git."""
    where = Path(__file__).parent

    def git(*args: str) -> str:
        command = ["git", "-C", str(where), *args]
        out = subprocess.run(command, check=False, capture_output=True, text=True)
        return out.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return (commit + "+" * bool(git("status", "--porcelain"))) or None
