"""Any experiment at a size that runs in seconds, as flags that a user could type."""

from collections.abc import Callable
from math import gcd
from pathlib import Path
from types import ModuleType
from typing import Any

from parity_jax.config import to_dict
from parity_jax.experiment import Experiment
from parity_jax.runs import resolve

# Nothing is larger than this; whatever an experiment has beside it stays as it is.
TINY = {
    "num_bits": 4,
    "num_digits": 2,
    "depth": 1,
    "width": 16,
    "num_heads": 2,
    "num_kv_heads": 1,
    "mlp_width": 16,
    "batch_size": 4,
    "num_prompts": 8,
    "num_generations": 4,
    "num_minibatches": 2,
    "num_iterations": 2,
    "num_epochs": 1,
    "num_updates": 4,
    "num_train": 64,
    "num_test": 8,
}
STEPS = ("num_steps", "eval_every", "checkpoint_every", "log_every", "decay_steps")
MAX_STEPS = 24

# Lists in an experiment's file that make a run of every entry: here of these.
SHORTER: dict[str, dict[str, Callable[[Any], Any]]] = {
    "c4_next_token_alone": {
        "SCALES": lambda scales: scales | {"cpu": with_models(scales["cpu"], C4_MODELS)}
    },
    "c9_sample_complexity": {
        "SCALES": lambda scales: scales | {"cpu": with_bits(scales["cpu"], 5, 8, 16)}
    },
    "q1_architectures": {
        "SCALES": lambda scales: scales | {"cpu": with_models(scales["cpu"], Q1_MODELS)}
    },
    "q2_unique_prompts": {"POOLS": lambda _: {"grpo": (1, 16, 0), "star": (1, 0)}},
    "q4_long_and_rare": {
        "SCALES": lambda scales: scales | {"cpu": with_bits(scales["cpu"], 16, 48)}
    },
    "q5_noise": {  # of every kind as many: runs of one stage have one program
        "NOISE": lambda found: dict.fromkeys(found, (0.0, 0.1, 0.2)),
        "ERRORS": lambda _: (0.0, 0.3, 0.9),
    },
    "q6_price": {"ALGORITHMS": lambda found: of(found, ("grpo", "rloo", "reinforce"))},
}
C4_MODELS = ("mistral_2x64", "gpt2_2x64")
Q1_MODELS = tuple(
    f"{name}_2x64" for name in ("mistral", "attention", "gpt2", "llama", "recurrent")
)


def of(found: dict[Any, Any], keys: tuple[Any, ...]) -> dict[Any, Any]:
    """Some entries."""
    return {key: found[key] for key in keys}


def with_models(scale: Any, names: tuple[str, ...]) -> Any:
    """A scale with some of its models."""
    return scale._replace(models=of(scale.models, names))


def with_bits(scale: Any, *num_bits: int) -> Any:
    """A scale with some of its numbers of bits."""
    return scale._replace(num_steps=of(scale.num_steps, num_bits))


def shortened(module: ModuleType) -> ModuleType:
    """An experiment's module, its long lists shorter from now on."""
    for name, shorter in SHORTER.get(module.__name__, {}).items():
        setattr(module, name, shorter(getattr(module, name)))
    return module


def choices(experiment: Experiment) -> set[tuple[str, Any]]:
    """Whatever its stages, models and tasks choose that is no number, anywhere."""
    found = set()
    for run in resolve(experiment).values():
        for part in ("stage", "model", "task"):
            found |= _choices(to_dict(getattr(run, part)), part)
    return found


def _choices(node: Any, path: str) -> set[tuple[str, Any]]:
    if isinstance(node, dict):
        inner = (_choices(value, f"{path}.{key}") for key, value in node.items())
        return set().union(*inner)
    if isinstance(node, list):
        return set().union(*(_choices(value, path) for value in node))
    return {(path, node)} if isinstance(node, (str, bool)) else set()


def tiny_flags(experiment: Experiment) -> list[str]:
    """Overrides that leave axes, runs and their order, but hardly any work."""
    flags, plain = [], to_dict(experiment)
    if any(
        Path(run["parent"]).is_dir() for run in plain["runs"].values() if run["parent"]
    ):
        plain.pop("model")  # its sizes are those of the weights
    for part in ("task", "model"):
        if all(run[part] is not None for run in plain["runs"].values()):
            plain.pop(part, None)  # nobody reads it
    flags += _sizes(plain, "config")
    for name, run in plain["runs"].items():
        flags += _steps(plain["runs"], name, run)
    flags += ["--config.population.num_devices=1", "--config.population.vmap_width=1"]
    return flags


def _sizes(node: Any, path: str) -> list[str]:
    flags = []
    for key, value in node.items() if isinstance(node, dict) else ():
        here = f"{path}.{key}"
        if isinstance(value, dict):
            flags += _sizes(value, here)
        elif key in TINY and isinstance(value, int):
            longer = key == "num_bits" and "chains" in node  # than any leap of them
            most = TINY[key] + longer
            flags += [f"--{here}={most}"] if value > most else []
        elif key == "leap" and value > 1:
            flags.append(f"--{here}=2")
    return flags


def _steps(runs: dict, name: str, run: dict) -> list[str]:
    """All steps of a run, and those at which others start from it, divided alike."""
    children = {n: r for n, r in runs.items() if r["parent"] == name}
    starts = [r["parent_step"] for r in children.values() if r["parent_step"] > 0]
    for child in children.values():
        starts += child["axes"].get("parent_step", [])
    sizes = [run[key] for key in STEPS[:3]] + run["checkpoint_steps"] + starts
    by = gcd(*sizes)
    if run["num_steps"] // by > MAX_STEPS and not children:
        by = run["num_steps"] // 6
    head = f"--config.runs.{name}"
    flags = [f"{head}.{key}={max(1, run[key] // by)}" for key in STEPS[:4] if run[key]]
    if run["checkpoint_steps"]:
        flags.append(f"{head}.checkpoint_steps={_listed(run['checkpoint_steps'], by)}")
    decay = run["stage"].get("optimizer", {}).get("decay_steps", 0)
    if decay:
        flags.append(f"{head}.stage.optimizer.decay_steps={max(1, decay // by)}")
    for other, child in children.items():
        if child["parent_step"] > 0:
            step = child["parent_step"] // by
            flags.append(f"--config.runs.{other}.parent_step={step}")
        if "parent_step" in child["axes"]:
            steps = _listed(child["axes"]["parent_step"], by)
            flags.append(f"--config.runs.{other}.axes.parent_step={steps}")
    return flags


def _listed(steps: list[int], by: int) -> str:
    return ",".join(str(step // by) for step in steps)
