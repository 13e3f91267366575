"""Which numbers a stage reads: found in what is traced, held against running it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from small_worlds import make_table, no_evaluation
from tiny import POLICY_GRADIENT, PRETRAIN, STAR, tiny_experiment

from parity_jax.config import ConfigError
from parity_jax.experiment import RunConfig
from parity_jax.hypers import BOUNDS, Hypers
from parity_jax.runs import make_program, resolve, run_experiment
from parity_jax.runs.checkpoint import to_arrays
from parity_jax.runs.unread import check_numbers
from parity_jax.stages.contract import numbers_read
from parity_jax.tasks import ParityConfig
from parity_jax.types import Data

DATA = {"p_cot", "p_leap", "emit_noise", "step_noise", "short_noise", "learning_rate"}
SAMPLED = {
    "temperature",
    "length_price",
    "false_positive",
    "false_negative",
    "learning_rate",
}
CLIPS = {"epsilon", "epsilon_high", "delta"}
UPDATES = dataclasses.replace(POLICY_GRADIENT, num_iterations=2, kl_estimator="k3")
CASES = {
    "pretrain": (PRETRAIN, DATA),
    "star": (STAR, SAMPLED),
    "on-policy": (POLICY_GRADIENT, SAMPLED | {"entropy_coef"}),
    "two updates": (UPDATES, SAMPLED | CLIPS | {"entropy_coef", "beta"}),
}
# Far from these defaults, within the bounds, and felt by a policy at its start.
BEFORE = Hypers(learning_rate=0.5, delta=1.001, beta=0.1, short_noise=0.2)
OTHER = {
    "learning_rate": 1.0,
    "temperature": 3.0,
    "epsilon": 0.001,
    "epsilon_high": 0.001,
    "delta": 3.0,
    "ridge": 0.1,
}


def stage_of(cfg):
    task = ParityConfig(4, leap=2).make()
    return cfg.make(task, make_table(task), no_evaluation)


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_is_what_is_felt(name):
    """Nothing that changes a step is missed, and nothing else is counted."""
    cfg, expected = CASES[name]
    stage = stage_of(cfg)
    assert numbers_read(stage, Data()) == expected
    step, found = jax.jit(stage.step), set()

    def outcome(hypers):
        numbers = jax.tree.map(jnp.float32, hypers)
        state = stage.init(jax.random.key(3), numbers, None)
        for _ in range(3):
            state, metrics = step(state, Data())
        return to_arrays((state.params, metrics))

    before = outcome(BEFORE)
    for number in BOUNDS:
        other = OTHER.get(number, 0.7)
        after = outcome(dataclasses.replace(BEFORE, **{number: other}))
        same = (np.array_equal(before[k], after[k], equal_nan=True) for k in before)
        found |= set() if all(same) else {number}
    assert found <= expected
    assert expected - found <= {"step_noise", "emit_noise"} | CLIPS  # by chance, rarely


def test_a_number_that_makes_another_one_is_read():
    """As a stage of one's own would have it that anneals its temperature."""
    stage = stage_of(PRETRAIN)

    def annealed(state, data):
        state, metrics = stage.step(state, data)
        hypers = state.hypers
        rate = hypers.learning_rate * hypers.ridge
        return state._replace(
            hypers=dataclasses.replace(hypers, learning_rate=rate)
        ), metrics

    found = numbers_read(stage._replace(step=annealed), Data())
    assert found == DATA | {"ridge"}


def test_the_form_of_a_price_that_nobody_pays_is_refused():
    given = tiny_experiment().runs["grpo"]
    rollout = dataclasses.replace(
        given.stage.rollout, length_price_form="multiplicative"
    )
    run = dataclasses.replace(
        given, stage=dataclasses.replace(given.stage, rollout=rollout)
    )
    told = r"runs\.grpo\.stage\.rollout\.length_price_form='multiplicative': must be "
    with pytest.raises(ConfigError, match=told + "'additive' with length_price=0"):
        check_numbers(resolve(tiny_experiment(runs=FrozenDict(grpo=run))), {})
    axes = FrozenDict({"length_price": (0.0, 0.1)})
    priced = dataclasses.replace(run, axes=axes)
    check_numbers(resolve(tiny_experiment(runs=FrozenDict(grpo=priced))), {})


def test_an_axis_is_refused_for_any_value_that_nobody_reads():
    """A child that reads one of them tells nothing of the others apart."""
    runs = tiny_experiment().runs
    axes = FrozenDict({"temperature": (1.0, 2.0)})
    both = {"pretrain": dataclasses.replace(runs["pretrain"], axes=axes)}
    for of_child, is_read in ((FrozenDict(), False), (axes, True)):
        child = dataclasses.replace(runs["grpo"], axes=of_child)
        resolved = resolve(tiny_experiment(runs=FrozenDict({**both, "grpo": child})))
        programs = {name: make_program(run) for name, run in resolved.items()}
        if is_read:
            check_numbers(resolved, programs)
            continue
        told = r"axes.temperature=.*: has 2, which is read by no run \(.*grpo.*\)"
        with pytest.raises(ConfigError, match=told):
            check_numbers(resolved, programs)


def test_an_axis_is_refused_where_all_members_start_from_one_value(tmp_path):
    """Those of a run that does not read it would secretly be one."""
    runs = tiny_experiment().runs
    shares, seeds = {"p_cot": (0.25, 0.5)}, FrozenDict({"seed": (0,)})
    pin = FrozenDict({"p_cot": 0.25})
    child = dataclasses.replace(runs["grpo"], parent_member=pin)
    told = "has 0.5, which changes nothing: all of grpo start from p_cot=0.25"

    def made(workdir, axes=seeds, **runs):
        experiment = tiny_experiment(runs=FrozenDict(runs), axes=axes)
        return run_experiment(experiment, tmp_path / workdir, quiet=True)

    with pytest.raises(ConfigError, match=told):
        made(
            "both",
            FrozenDict({**seeds, **shares}),
            pretrain=runs["pretrain"],
            grpo=child,
        )
    assert not (tmp_path / "both").exists()
    several = dataclasses.replace(runs["pretrain"], axes=FrozenDict(shares))
    assert made("one", pretrain=several, grpo=child)  # which has one member
    of_others = dataclasses.replace(
        child, parent=str(tmp_path / "one/pretrain"), axes=FrozenDict(shares)
    )
    with pytest.raises(ConfigError, match=told):
        made("alone", grpo=of_others)


def test_numbers_are_read_where_only_some_runs_are_left(tmp_path):
    """Whether the others ended before, are left out, or are elsewhere."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    runs = tiny_experiment().runs

    def experiment(name, **fields):
        run = dataclasses.replace(runs[name], **fields)
        return tiny_experiment(runs=FrozenDict({**runs, name: run}))

    def refused(each, workdir, name, number):
        with pytest.raises(ConfigError, match=number) as info:
            run_experiment(each, workdir, [name], quiet=True)
        assert "is read by no run" in str(info.value)

    ridge = FrozenDict({"ridge": (1e-3, 1e-2)})  # of which one is what others have
    noise = dataclasses.replace(runs["grpo"].hypers, emit_noise=0.3)
    refused(experiment("pretrain", hypers=Hypers(ridge=0.3)), home, "pretrain", "ridge")
    refused(experiment("pretrain", axes=ridge), home, "pretrain", "ridge")
    assert not home.exists()
    axes = FrozenDict({"seed": (0, 1), "p_cot": (0.25, 0.5)})  # the first stage's
    whole = tiny_experiment(axes=axes)
    run_experiment(tiny_experiment(), home, ["pretrain"], quiet=True)
    run_experiment(whole, elsewhere, ["pretrain"], quiet=True)
    for fields, number in (
        ({"hypers": noise}, "emit_noise"),
        ({"axes": ridge}, "ridge"),
    ):
        refused(experiment("grpo", **fields), home, "grpo", number)
        parent = {"parent": str(home / "pretrain")}
        away = experiment("grpo", **fields, **parent)
        refused(away, tmp_path / "away", "grpo", number)
    assert run_experiment(whole, elsewhere, ["grpo"], quiet=True)
    own = dataclasses.replace(runs["grpo"], parent=str(elsewhere / "pretrain"))
    child = tiny_experiment(axes=axes, runs=FrozenDict(grpo=own))
    assert run_experiment(child, tmp_path / "child", quiet=True)
    elsewhere.rename(tmp_path / "moved")  # its own checkpoints are enough to grow
    more = dataclasses.replace(own, num_steps=own.num_steps + 1)
    grown = tiny_experiment(axes=axes, runs=FrozenDict(grpo=more))
    assert run_experiment(grown, tmp_path / "child", quiet=True)


def test_members_that_trained_alike_are_told(tmp_path, capfd):
    """A number that is read, but that another one leaves nothing to do."""
    run = RunConfig(stage=PRETRAIN, num_steps=2, log_every=2, hypers=Hypers(p_cot=1.0))
    for number, is_told in (("short_noise", True), ("learning_rate", False)):
        axes = FrozenDict({"seed": (0, 1), number: (0.125, 0.25)})
        experiment = tiny_experiment(axes=axes, runs=FrozenDict(pretrain=run))
        assert run_experiment(experiment, tmp_path / number, quiet=True)
        told = capfd.readouterr()
        pairs = [
            f"short_noise=0.25,seed={s} as short_noise=0.125,seed={s}" for s in (0, 1)
        ]
        line = f"members trained to the same parameters: {'; '.join(pairs)}\n"
        assert told.err.count(line) == told.err.count("same parameters") == is_told
