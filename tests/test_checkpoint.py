"""Checkpoints: N + M steps equal N, save, restore, M; chains, damage, mismatches."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from tiny import POLICY_GRADIENT, PRETRAIN, STAR, tiny_experiment, tiny_stage

from parity_jax.checkpoint import (
    CheckpointError,
    Checkpoints,
    digest,
    from_arrays,
    subtree,
    to_arrays,
)
from parity_jax.config import PopulationConfig, RolloutConfig
from parity_jax.population import make_population
from parity_jax.results import load_metrics, read_json
from parity_jax.runs import build, run_experiment
from parity_jax.types import Hypers

STAGES = {
    "pretrain": PRETRAIN,
    "policy_gradient": dataclasses.replace(
        POLICY_GRADIENT,
        rollout=RolloutConfig(4, 4, num_unique_prompts=6),
        num_iterations=2,
        num_minibatches=2,
        kl_estimator="k3",
    ),
    "star": dataclasses.replace(STAR, restart=True),
}


def assert_identical(a, b):
    a, b = to_arrays(a), to_arrays(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize(
    ("name", "layout"),
    [*[(name, (1, 1)) for name in STAGES], ("pretrain", (1, 2)), ("pretrain", (2, 1))],
)
def test_continuing_equals_never_stopping(name, layout, tmp_path):
    stage = tiny_stage(STAGES[name])
    hypers = Hypers(beta=0.1, p_cot=0.5, learning_rate=1e-2)
    population = make_population(
        PopulationConfig(*layout), stage, {"seed": (0, 1)}, hypers
    )
    whole, _ = population.run(population.init(None), 5)
    states, _ = population.run(population.init(None), 2)
    before = to_arrays(states)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(2, states)
    checkpoints.wait()
    template = jax.eval_shape(population.init, None)
    restored = from_arrays(checkpoints.read(2), template)
    checkpoints.close()
    assert_identical(restored, states)
    states, _ = population.run(restored, 3)
    assert states.step.tolist() == [5, 5]
    assert_identical(states, whole)
    moved = [(array != before[name]).any() for name, array in to_arrays(states).items()]
    assert sum(moved) > len(moved) / 2


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run: pretrain with checkpoints 0, 2, 4, then grpo."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    run_experiment(tiny_experiment(), directory, quiet=True)
    return directory


def arrays(directory, step):
    checkpoints = Checkpoints(directory)
    out = checkpoints.read(step)
    checkpoints.close()
    return out


def test_files_of_a_run(workdir):
    for name, last in (("pretrain", 4), ("grpo", 2)):
        files = {path.name for path in (workdir / name).iterdir()}
        expected = {"config.json", "lineage.json", "checkpoints", "metrics.jsonl"}
        assert files == expected | {"finished.json"}
        finished = read_json(workdir / name / "finished.json")
        assert finished == {"step": [last] * 2, "status": [0, 0]}
    assert load_metrics(workdir / "pretrain", "train")["step"].values.tolist() == [
        1,
        2,
        3,
        4,
    ]
    assert load_metrics(workdir / "pretrain", "eval")["step"].values.tolist() == [
        0,
        2,
        4,
    ]


def test_step_zero_is_a_checkpoint_of_the_fresh_states(workdir):
    population = build(tiny_experiment(), "pretrain")
    fresh = population.init(None)
    template = jax.eval_shape(population.init, None)
    assert_identical(from_arrays(arrays(workdir / "pretrain", 0), template), fresh)


def test_chain_keeps_parameters_and_resets_the_optimizer(workdir):
    parent, child = arrays(workdir / "pretrain", 4), arrays(workdir / "grpo", 0)
    params = subtree(parent, "params")
    assert params
    for name, array in params.items():
        np.testing.assert_array_equal(child[f"params.{name}"], array)
    assert any(array.any() for array in subtree(parent, "opt_state").values())
    assert not any(array.any() for array in subtree(child, "opt_state").values())
    assert child["step"].tolist() == [0, 0]
    lineage = read_json(workdir / "grpo" / "lineage.json")["parent"]
    assert lineage["step"] == 4 and lineage["run"].endswith("pretrain")
    assert lineage["params_sha256"] == digest(params)


def test_parent_step_chooses_the_checkpoint(workdir, tmp_path):
    experiment = tiny_experiment()
    grpo = dataclasses.replace(
        experiment.runs["grpo"], parent=str(workdir / "pretrain"), parent_step=2
    )
    experiment = dataclasses.replace(experiment, runs=type(experiment.runs)(grpo=grpo))
    run_experiment(experiment, tmp_path / "run", quiet=True)
    parent, child = arrays(workdir / "pretrain", 2), arrays(tmp_path / "run/grpo", 0)
    for name, array in subtree(parent, "params").items():
        np.testing.assert_array_equal(child[f"params.{name}"], array)


def test_missing_step_says_which_there_are(workdir):
    with pytest.raises(
        CheckpointError, match=r"/3: no such checkpoint \(there are: 0, 2, 4"
    ):
        arrays(workdir / "pretrain", 3)


ARRAYS = {"a": np.arange(4, dtype=np.float32), "b.c": np.zeros((2, 2), np.int32)}


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.float32([0, 1, 2, 3.0000002]), "b.c": ARRAYS["b.c"]},
        {"a": ARRAYS["a"].reshape(2, 2), "b.c": ARRAYS["b.c"]},
        {"a": ARRAYS["a"], "b.c": ARRAYS["b.c"].astype(np.float32)},
        {"a": ARRAYS["a"], "b.d": ARRAYS["b.c"]},
        {"a": ARRAYS["a"]},
    ],
)
def test_digest_sees_bytes_shapes_types_and_names(other):
    assert digest(ARRAYS) == digest(dict(reversed(ARRAYS.items())))
    assert digest(ARRAYS) != digest(other)


def damage_state(directory):
    for path in (directory / "state").rglob("*"):
        if path.is_file():  # cut off in the middle
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_digest(directory):
    (path,) = [
        p
        for p in (directory / "digest").rglob("*")
        if p.is_file() and "sha256" in p.read_text()
    ]
    saved = json.loads(path.read_text())
    saved["sha256"] = saved["sha256"][:-1] + "g"
    path.write_text(json.dumps(saved))


@pytest.mark.parametrize("damage", [damage_state, damage_digest])
def test_damaged_newest_checkpoint_falls_back(damage, workdir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workdir / "pretrain", run)
    before = arrays(run, 2)
    damage(run / "checkpoints" / "4")
    checkpoints, warnings = Checkpoints(run), []
    with pytest.raises(CheckpointError, match="/4: "):
        checkpoints.read(4)
    step, found = checkpoints.read_latest(warnings.append)
    assert step == 2 and digest(found) == digest(before)
    assert len(warnings) == 1 and "/4: " in warnings[0]
    assert checkpoints.steps() == [0, 2]
    checkpoints.close()


def test_no_checkpoint_at_all(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.read_latest(pytest.fail) is None
    with pytest.raises(CheckpointError, match="there are: none"):
        checkpoints.read(0)
    checkpoints.close()


def test_mismatches_are_named():
    template = {
        "a": jax.ShapeDtypeStruct((4,), "float32"),
        "b": {"c": np.zeros((2, 3))},
    }
    saved = {"b.c": np.zeros((2, 2)), "d": np.zeros(1)}
    with pytest.raises(CheckpointError) as info:
        from_arrays(saved, template)
    text = str(info.value)
    assert "a is missing" in text and "d is unknown" in text
    assert "b.c is (2, 2), expected (2, 3)" in text
    fits = {"a": np.arange(4, dtype=np.float32), "b.c": np.ones((2, 3), np.float32)}
    restored = from_arrays(fits, template)
    np.testing.assert_array_equal(restored["b"]["c"], fits["b.c"])
