"""Checkpoints: N + M steps equal N, save, restore, M; chains, damage, mismatches."""

import dataclasses
import hashlib
import json
import shutil

import jax
import numpy as np
import pytest
from small_runs import WalkConfig, assert_identical, digests, read, walk, walks
from tiny import POLICY_GRADIENT, PRETRAIN, STAR

from parity_jax.evaluate import EvaluateConfig, make_evaluate
from parity_jax.hypers import Hypers
from parity_jax.metrics import Mean
from parity_jax.models import LinearConfig
from parity_jax.population import PopulationConfig, make_population
from parity_jax.runs import RunDirectory, make_program, resolve, run_experiment
from parity_jax.runs.checkpoint import (
    CheckpointError,
    Checkpoints,
    digest,
    from_arrays,
    subtree,
    to_arrays,
)
from parity_jax.stages import RolloutConfig
from parity_jax.tasks import ParityConfig

ONE_BY_ONE, AT_ONCE = PopulationConfig(1, 1), PopulationConfig(1, 2)
TWO_DEVICES = PopulationConfig(2, 1)
CASES = {
    "pretrain": (PRETRAIN, ONE_BY_ONE),
    "policy_gradient": (
        dataclasses.replace(
            POLICY_GRADIENT,
            rollout=RolloutConfig(4, 4, num_unique_prompts=6),
            num_iterations=2,
            num_minibatches=2,
            kl_estimator="k3",
        ),
        ONE_BY_ONE,
    ),
    "star": (dataclasses.replace(STAR, restart=True), ONE_BY_ONE),
    "all at once": (WalkConfig(), AT_ONCE),
    "two devices": (WalkConfig(), TWO_DEVICES),
}


@pytest.mark.parametrize("case", CASES)
def test_continuing_equals_never_stopping(case, tmp_path):
    cfg, layout = CASES[case]
    task = ParityConfig(4).make()
    model = LinearConfig().make(task)  # the one that is traced fastest
    evaluate = make_evaluate(EvaluateConfig(8, (1.0,)), task, model)
    stage = cfg.make(task, model, evaluate)
    hypers = Hypers(beta=0.1, p_cot=0.5, learning_rate=1e-2)
    axes = {"seed": (0, 1)}
    population = make_population(layout, stage, axes, hypers)
    start = population.init(None), population.no_metrics()
    whole = population.advance(*start, 5)
    start = population.init(None), population.no_metrics()
    states, metrics = population.advance(*start, 2)
    before = to_arrays(states)
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(2, states, metrics, 0)
    checkpoints.wait()
    saved = checkpoints.read(2)
    checkpoints.close()
    assert (saved.step, saved.recorded) == (2, 0)
    own = {k: x for k, x in saved.arrays.items() if not k.startswith("metrics.")}
    restored = from_arrays(own, jax.eval_shape(population.init, None))
    assert_identical(restored, states)
    partial = from_arrays(subtree(saved.arrays, "metrics"), population.no_metrics())
    assert_identical(partial, metrics)
    states, metrics = population.advance(*population.place((restored, partial)), 3)
    assert states.step.tolist() == [5, 5]
    assert_identical(states, whole[0])
    assert_identical(metrics, whole[1])
    assert (metrics["loss"].count >= 5).all()  # those of all five steps
    after = {k: x for k, x in to_arrays(states).items() if not k.startswith("hypers.")}
    moved = [(array != before[name]).any() for name, array in after.items()]
    assert sum(moved) > len(moved) / 2


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run with checkpoints 0, 2, 4, and a child of its last step."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    runs = {"first": walk(), "child": walk(parent="first", num_steps=2)}
    run_experiment(walks(**runs), directory, quiet=True)
    return directory


def test_files_of_a_run(workdir):
    for name, last in (("first", 4), ("child", 2)):
        files = {path.name for path in (workdir / name).iterdir()}
        expected = {"config.json", "lineage.json", "checkpoints", "metrics.jsonl"}
        assert files == expected | {"finished.json", ".lock"}
        finished = json.loads((workdir / name / "finished.json").read_text())
        digest_of_records = RunDirectory(workdir / name).metrics.sha256()
        assert finished.pop("records_sha256") == digest_of_records
        lineage = json.loads((workdir / name / "lineage.json").read_text())
        text = json.dumps(lineage, sort_keys=True).encode()
        assert finished.pop("lineage_sha256") == hashlib.sha256(text).hexdigest()
        config = json.loads((workdir / name / "config.json").read_text())
        text = json.dumps(config, sort_keys=True).encode()
        assert finished.pop("config_sha256") == hashlib.sha256(text).hexdigest()
        assert finished == {"step": [last] * 2, "status": [0, 0]}
    found = RunDirectory(workdir / "first").metrics.read()
    assert [r.step for r in found if r.split == "train"] == [1, 2, 3, 4]
    assert [r.step for r in found if r.split == "eval"] == [0, 2, 4]


def test_step_zero_is_a_checkpoint_of_the_fresh_states(workdir):
    program = make_program(resolve(walks(run=walk()))["run"])
    fresh = program.init(None)
    template = jax.eval_shape(program.init, None)
    assert_identical(from_arrays(read(workdir / "first", 0), template), fresh)


def test_chain_keeps_parameters_and_resets_the_optimizer(workdir):
    parent, child = read(workdir / "first", 4), read(workdir / "child", 0)
    params = subtree(parent, "params")
    assert params
    for name, array in params.items():
        np.testing.assert_array_equal(child[f"params.{name}"], array)
    assert any(array.any() for array in subtree(parent, "opt_state").values())
    assert not any(array.any() for array in subtree(child, "opt_state").values())
    assert child["step"].tolist() == [0, 0]
    lineage = RunDirectory(workdir / "child").read_lineage().parent
    assert lineage.step == (4,) and lineage.run == str(workdir / "first")
    assert lineage.params_sha256 == (digest(params),)
    assert lineage.sequences == (8,)  # 2 a step


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
    ids=["bytes", "shape", "type", "name", "missing"],
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
    run, warnings = tmp_path / "run", []
    shutil.copytree(workdir / "first", run)
    before = digests(run)[2]
    damage(run / "checkpoints" / "4")
    directory = RunDirectory(run)
    with directory.checkpoints(directory.read_config()) as checkpoints:
        with pytest.raises(CheckpointError, match="/4: "):
            checkpoints.read(4)
        found = checkpoints.read_latest(warnings.append)
        assert found.step == 2 and digest(found.arrays) == before
        assert len(warnings) == 1 and "/4: " in warnings[0]
        assert checkpoints.steps() == [0, 2]


def test_a_missing_step_says_which_there_are(workdir, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"/3: no such checkpoint \(there are: 0, 2, 4\)"
    ):
        read(workdir / "first", 3)
    new = RunDirectory(tmp_path / "new")
    with new.checkpoints(RunDirectory(workdir / "first").read_config()) as checkpoints:
        assert checkpoints.read_latest(pytest.fail) is None
        with pytest.raises(CheckpointError, match="there are: none"):
            checkpoints.read(0)


def test_mismatches_are_named():
    number = jax.ShapeDtypeStruct((), "float32")
    template = {
        "a": jax.ShapeDtypeStruct((4,), "float32"),
        "b": {"c": np.zeros((2, 3))},
        "m": Mean(number, number),
        "n": number,
    }
    saved = {"b.c": np.zeros((2, 2)), "d": np.zeros(1), "m.total": np.float32(0)}
    saved["n"] = np.int32(0)
    with pytest.raises(CheckpointError) as info:
        from_arrays(saved, template)
    text = str(info.value)
    assert "a is missing" in text and "d is unknown" in text
    assert "b.c is (2, 2), expected (2, 3)" in text and "m.count is missing" in text
    assert "n is int32, expected float32" in text
    fits = {"a": np.arange(4, dtype=np.float32), "b.c": np.ones((2, 3), np.float32)}
    template = {name: template[name] for name in ("a", "b")}
    restored = from_arrays(fits, template)
    np.testing.assert_array_equal(restored["b"]["c"], fits["b.c"])
