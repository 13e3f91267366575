"""The lab book: every experiment is documented, valid, and steps at a tiny size."""

import importlib
import inspect
import math
from pathlib import Path

import pytest

from parity_jax.config import Experiment, check_hypers, from_dict, to_dict
from parity_jax.masked import Mean
from parity_jax.runs import build, describe, order_of_execution

ROOT = Path(__file__).parents[1]
NAMES = sorted(
    path.stem
    for path in (ROOT / "experiments").glob("*.py")
    if "def get_config(" in path.read_text()
)

# Sizes of the overlay; whatever an experiment has beside them stays as it is.
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
    "num_unique_prompts": 8,
    "num_minibatches": 2,
    "num_iterations": 2,
    "num_epochs": 1,
    "num_updates": 4,
    "num_devices": 1,
    "vmap_width": 1,
}


def load(name):
    module = importlib.import_module(f"experiments.{name}")
    return module, from_dict(Experiment, module.get_config().to_dict())


def shrink(node, key=""):
    """The overlay: nothing is larger than in TINY, one value of every axis."""
    if key == "axes":
        return {name: values[:1] for name, values in node.items()}
    if isinstance(node, dict):
        return {name: shrink(value, name) for name, value in node.items()}
    if key == "init_std":  # no program of its own
        return 0.25
    if key == "leap":
        return min(node, TINY["num_bits"])
    if key in TINY and isinstance(node, int):
        return min(node, TINY[key]) if node else node
    return node


@pytest.mark.parametrize("name", NAMES)
def test_documented(name):
    module, experiment = load(name)
    for line in ("Command ", "Device ", "Expected ", "Figure "):
        assert f"\n{line}" in module.__doc__, line
    assert callable(module.analyse)
    assert f"experiments/{name}.py" in module.__doc__ or "make " in module.__doc__
    assert set(order_of_execution(experiment)) == set(experiment.runs)
    for run in experiment.runs.values():
        check_hypers(run.hypers)


@pytest.mark.parametrize("name", NAMES)
def test_the_scale_of_the_paper_is_a_valid_experiment_as_well(name):
    module, experiment = load(name)
    if inspect.signature(module.get_config).parameters:
        paper = from_dict(Experiment, module.get_config("paper").to_dict())
        assert paper != experiment


def programs():
    """One run of every program among the tiny runs: their numbers are no program."""
    seen = {}
    for name in NAMES:
        tiny = from_dict(Experiment, shrink(to_dict(load(name)[1])))
        for run in tiny.runs:
            described = describe(tiny, run)
            static = (described["model"], described["task"], tiny.runs[run].stage)
            key = repr(static)
            seen.setdefault(key, pytest.param(tiny, run, id=f"{name}-{run}"))
    return list(seen.values())


@pytest.mark.parametrize(("experiment", "run"), programs())
def test_two_steps(experiment, run):
    population = build(experiment, run)
    states, metrics = population.run(population.init(None), 2)
    steps, status = states.step.tolist(), states.status.tolist()
    assert all(n == 2 or reason != 0 for n, reason in zip(steps, status, strict=True))
    loss = metrics["loss"]
    assert isinstance(loss, Mean)
    assert all(math.isfinite(total) for total in loss.total.tolist())
