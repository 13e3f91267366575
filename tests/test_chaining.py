"""Runs that start from members and steps of another, on any layout of devices."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.core import FrozenDict
from tiny import tiny_experiment

from parity_jax.checkpoint import Checkpoints, digest, from_arrays, subtree, to_arrays
from parity_jax.config import ConfigError, PopulationConfig
from parity_jax.results import load_metrics, read_json
from parity_jax.runs import build, run_experiment

STEPS = (0, 2, 4)


def params(directory, step):
    checkpoints = Checkpoints(directory, read_only=True)
    out = subtree(checkpoints.read(step), "params")
    checkpoints.close()
    return out


def with_child(**fields):
    experiment = tiny_experiment()
    child = dataclasses.replace(experiment.runs["grpo"], **fields)
    runs = experiment.runs.copy({"grpo": child})
    return dataclasses.replace(experiment, runs=runs)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Two seeds pre-trained; GRPO from every checkpoint of them in one launch."""
    directory = tmp_path_factory.mktemp("chaining") / "run"
    experiment = with_child(axes=FrozenDict({"parent_step": STEPS}))
    run_experiment(experiment, directory, quiet=True)
    return directory


def test_every_checkpoint_of_a_run_can_be_an_axis(workdir):
    child = params(workdir / "grpo", 0)
    for i, step in enumerate(STEPS):
        for name, array in params(workdir / "pretrain", step).items():
            np.testing.assert_array_equal(child[name][2 * i : 2 * i + 2], array)
    scores = load_metrics(workdir / "grpo", "eval")
    assert scores["reward" if "reward" in scores else "t1/accuracy"].dims == (
        "parent_step",
        "seed",
        "step",
    )
    assert scores["parent_step"].values.tolist() == list(STEPS)


def test_lineage_names_stage_steps_and_hashes(workdir):
    lineage = read_json(workdir / "grpo" / "lineage.json")
    parent = lineage["parent"]
    assert lineage["stage"] == "policy_gradient" and lineage["continued"] == []
    assert parent["run"] == str(workdir / "pretrain")
    assert parent["step"] == list(STEPS)
    expected = [digest(params(workdir / "pretrain", step)) for step in STEPS]
    assert parent["params_sha256"] == expected
    assert {"jax", "orbax-checkpoint"} <= lineage["packages"].keys()


@pytest.mark.parametrize(
    ("fields", "step", "index"),
    [
        ({"parent_member": FrozenDict({"seed": 1.0}), "parent_step": 2}, 2, [1, 1]),
        ({"axes": FrozenDict({"temperature": (0.5, 1.0)})}, 4, [0, 1, 0, 1]),
    ],
    ids=["one seed for all", "a new axis"],
)
def test_members_are_sliced_and_broadcast(workdir, tmp_path, fields, step, index):
    experiment = with_child(parent=str(workdir / "pretrain"), **fields)
    alone = dataclasses.replace(
        experiment, runs=FrozenDict({"grpo": experiment.runs["grpo"]})
    )
    run_experiment(alone, tmp_path / "run", quiet=True)
    child = params(tmp_path / "run" / "grpo", 0)
    for name, array in params(workdir / "pretrain", step).items():
        np.testing.assert_array_equal(child[name], array[index])


def test_a_step_that_another_directory_does_not_have_is_refused(workdir, tmp_path):
    experiment = with_child(parent=str(workdir / "pretrain"), parent_step=3)
    with pytest.raises(ConfigError, match=r"parent_step=3: .*\(0, 2, 4\)"):
        run_experiment(experiment, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


LAYOUTS = [PopulationConfig(1, 1), PopulationConfig(1, 2), PopulationConfig(2, 1)]


def test_a_checkpoint_restores_on_other_devices_and_layouts(workdir):
    """Bit for bit as it was, and the next steps agree to rounding."""
    checkpoints = Checkpoints(workdir / "pretrain", read_only=True)
    saved = checkpoints.read(2)
    checkpoints.close()
    ends = []
    for layout in LAYOUTS:
        experiment = dataclasses.replace(tiny_experiment(), population=layout)
        population = build(experiment, "pretrain")
        states = from_arrays(saved, jax.eval_shape(population.init, None))
        assert digest(to_arrays(states)) == digest(saved)
        states, _ = population.run(states, 2)
        ends.append(to_arrays(states.params))
    for end in ends[1:]:
        for name, array in ends[0].items():
            if "key.bias" not in name:  # no gradient: Adam amplifies rounding
                np.testing.assert_allclose(end[name], array, atol=2e-4, err_msg=name)
