"""Configs: round trip, and one clear line for everything that is wrong."""

import dataclasses
import json
from pathlib import Path

import pytest
from flax.core import FrozenDict
from tiny import POLICY_GRADIENT, PRETRAIN, STAR, tiny_experiment

from parity_jax.config import (
    ConfigError,
    differences,
    from_dict,
    kind_of,
    label_text,
    lines_of,
    number_text,
    parse_label,
    to_dict,
)
from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig, Schedule
from parity_jax.hypers import BOUNDS, Hypers
from parity_jax.models import LinearConfig, TransformerConfig, gpt2, mistral
from parity_jax.optim import OptimizerConfig
from parity_jax.population import PopulationConfig
from parity_jax.runs import ResolvedRun, resolve
from parity_jax.runs.forecast import check_files
from parity_jax.stages import (
    LinearPretrainConfig,
    LinearStarConfig,
    PolicyGradientConfig,
    PretrainConfig,
    RolloutConfig,
    SgdConfig,
    StarConfig,
    dapo,
    dr_grpo,
    reinforce,
)
from parity_jax.tasks import MultiplicationConfig, ParityConfig, TaskConfig

CONFIGS = [
    ParityConfig(6, 3),
    MultiplicationConfig(9),
    gpt2(4, 64, sliding_window=8, dtype="bfloat16"),
    mistral(8, 256),
    LinearConfig(),
    PRETRAIN,
    RolloutConfig(3, 2, ("e2e", "cot"), (1.0, 0.5), "multiplicative", 7),
    dr_grpo(num_iterations=2, num_minibatches=2, kl_estimator="k3"),
    dapo(max_resamples=2),
    STAR,
    LinearStarConfig(),
    OptimizerConfig("sgd", decay_steps=3),
    EvaluateConfig(7, (0.5, 2.0)),
    PopulationConfig(2, 3),
    RunConfig(stage=STAR, parent="x", axes=FrozenDict({"p_cot": (0.1, 0.2)})),
    tiny_experiment(),
    Hypers(p_cot=0.5, beta=0.1),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda x: type(x).__name__)
def test_round_trip_through_json(config):
    again = from_dict(type(config), json.loads(json.dumps(to_dict(config))))
    assert again == config and hash(again) == hash(config)
    field = dataclasses.fields(config)[0].name if dataclasses.fields(config) else "x"
    with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
        setattr(config, field, None)


def test_defaults_are_complete_from_nothing():
    assert from_dict(Experiment, {}) == Experiment()
    assert from_dict(RunConfig, {"stage": {"kind": "star"}}).stage == StarConfig()


def test_fields_that_follow_from_the_width_follow_it():
    assert mistral(2, 64).resolved().mlp_width == 7 * 64 // 2
    assert gpt2(2, 64).resolved().init_std == 64**-0.5
    narrowed = dataclasses.replace(gpt2(2, 128), width=64).resolved()
    assert (narrowed.mlp_width, narrowed.init_std) == (256, 64**-0.5)
    given = gpt2(2, 64, mlp_width=5, init_std=0.02).resolved()
    assert (given.mlp_width, given.init_std) == (5, 0.02)
    # GPT-2 has as many key-value heads as heads, however their number was given
    for eight in (gpt2(num_heads=8), dataclasses.replace(gpt2(), num_heads=8)):
        assert eight.resolved().num_kv_heads == 8


# (config, overrides, name of the field, what is allowed); every value is wrong
BAD = [
    (ParityConfig, {"num_bits": 1}, "num_bits", "in [2, "),
    (ParityConfig, {"num_bits": 1_000_000_000}, "num_bits", "in [2, "),
    (ParityConfig, {"num_bits": 4.0}, "num_bits", "type int"),
    (ParityConfig, {"num_bits": True}, "num_bits", "type int"),
    (ParityConfig, {"num_bits": 4, "leap": 5}, "leap", "in [1, 4]"),
    (TransformerConfig, {"depth": 0}, "depth", "at least 1"),
    (TransformerConfig, {"num_heads": 3}, "num_heads", "divide width=128"),
    (TransformerConfig, {"num_kv_heads": 3}, "num_kv_heads", "divide num_heads=4"),
    (
        TransformerConfig,
        {"width": 12, "num_heads": 4, "positions": "rotary"},
        "num_heads",
        "head size 3 must be even",
    ),
    (TransformerConfig, {"positions": "rotory"}, "positions", "did you mean 'rotary'"),
    (TransformerConfig, {"dtype": 16}, "dtype", "valid: bfloat16, float32"),
    (TransformerConfig, {"bias": 1}, "bias", "type bool"),
    (TransformerConfig, {"init_std": "big"}, "init_std", "number"),
    (TransformerConfig, {"init_std": -1.0}, "init_std", "finite number >= 0"),
    (TransformerConfig, {"init_std": float("nan")}, "init_std", "finite"),
    (TransformerConfig, {"sliding_window": -1}, "sliding_window", "0 (off)"),
    (TransformerConfig, {"mlp_width": -1}, "mlp_width", "0 (from the width)"),
    (PretrainConfig, {"batch_size": 0}, "batch_size", "at least 1"),
    (OptimizerConfig, {"weight_decay": -0.1}, "weight_decay", ">= 0"),
    (OptimizerConfig, {"weight_decay": float("inf")}, "weight_decay", "finite"),
    (OptimizerConfig, {"decay_steps": -1}, "decay_steps", "0 (constant"),
    (OptimizerConfig, {"final_lr_ratio": 1.5}, "final_lr_ratio", "in [0, 1]"),
    (OptimizerConfig, {"name": "sgd", "weight_decay": 0.1}, "weight_decay", "sgd"),
    (OptimizerConfig, {"final_lr_ratio": 0.1}, "final_lr_ratio", "decay_steps=0"),
    (TransformerConfig, {"rope_theta": 5e5}, "rope_theta", "positions='learned'"),
    (EvaluateConfig, {"temperatures": (), "num_samples": 2}, "num_samples", "be 1 "),
    (PolicyGradientConfig, {"kl_in": "reward"}, "kl_in", "kl_estimator='none'"),
    (PolicyGradientConfig, {"max_resamples": 5}, "max_resamples", "groups='keep'"),
    (
        PolicyGradientConfig,
        {"scale_rewards": "none", "std_ddof": 1},
        "std_ddof",
        "must be 0 with scale_rewards='none'",
    ),
    (
        PolicyGradientConfig,
        {"scale_rewards": "none", "std_eps": 1.0},
        "std_eps",
        "must be 0.0001 with scale_rewards='none'",
    ),
    (RolloutConfig, {"num_prompts": 0}, "num_prompts", "at least 1"),
    (EvaluateConfig, {"num_prompts": 2**31 - 1}, "num_prompts", "times 4 responses"),
    (RolloutConfig, {"num_prompts": 2**30}, "num_generations", "times num_prompts"),
    (RolloutConfig, {"num_unique_prompts": 10**9}, "num_unique_prompts", "at most"),
    (SgdConfig, {"average_power": 2**31}, "average_power", "at most 1000000"),
    (
        PolicyGradientConfig,
        {
            "rollout": to_dict(RolloutConfig(1, 1)),
            "baseline": "batch",
            "scale_rewards": "none",
        },
        "rollout.num_generations",
        "a batch of one prompt",
    ),
    (
        PolicyGradientConfig,
        {
            "rollout": to_dict(RolloutConfig(1, 1)),
            "baseline": "none",
            "scale_rewards": "batch",
        },
        "rollout.num_generations",
        "a batch of one prompt",
    ),
    (RolloutConfig, {"rewards": ()}, "rewards", "at least one"),
    (RolloutConfig, {"rewards": ("e2e", "cot")}, "reward_weights", "one weight"),
    (RolloutConfig, {"reward_weights": (0.0,)}, "reward_weights", "must not all be 0"),
    (
        RolloutConfig,
        {"rewards": ("e2e", "e2e"), "reward_weights": (1.0, -1.0)},
        "reward_weights",
        "must not all be 0",
    ),
    (RolloutConfig, {"length_price_form": "square"}, "length_price_form", "additive"),
    (RolloutConfig, {"num_unique_prompts": -1}, "num_unique_prompts", "0 (fresh)"),
    (PolicyGradientConfig, {"baseline": "mean"}, "baseline", "valid: batch"),
    (PolicyGradientConfig, {"std_ddof": 2}, "std_ddof", "0 or 1"),
    (PolicyGradientConfig, {"std_eps": -1.0}, "std_eps", ">= 0"),
    (PolicyGradientConfig, {"num_minibatches": 3}, "num_minibatches", "divide"),
    (PolicyGradientConfig, {"max_resamples": 0}, "max_resamples", "at least 1"),
    (
        PolicyGradientConfig,
        {"rollout": {"num_generations": 1}, "baseline": "none"},
        "rollout.num_generations",
        "at least 2",
    ),
    (
        PolicyGradientConfig,
        {"baseline": "leave_one_out", "scale_rewards": "batch"},
        "scale_rewards",
        "'none' with baseline='leave_one_out'",
    ),
    (PolicyGradientConfig, {"kl_estimator": "k1"}, "kl_estimator", "k2 or k3"),
    (
        PolicyGradientConfig,
        {"importance_sampling_level": "sequence"},
        "importance_sampling_level",
        "must be 'token' with one update per rollout",
    ),
    (StarConfig, {"batch_size": 100}, "batch_size", "divide the 2048 samples"),
    (EvaluateConfig, {"num_prompts": 0}, "num_prompts", "at least 1"),
    (EvaluateConfig, {"temperatures": (1.0, 0.0)}, "temperatures", "finite and >="),
    (EvaluateConfig, {"temperatures": (1.0, 1.0)}, "temperatures", "distinct"),
    (EvaluateConfig, {"temperatures": (1.0, 1.00000001)}, "temperatures", "distinct"),
    (EvaluateConfig, {"temperatures": (float("inf"),)}, "temperatures", "finite"),
    (RolloutConfig, {"reward_weights": (float("inf"),)}, "reward_weights", "finite"),
    (RolloutConfig, {"reward_weights": (float("nan"),)}, "reward_weights", "finite"),
    (PopulationConfig, {"vmap_width": -1}, "vmap_width", "0 (automatic)"),
    (RunConfig, {"num_steps": 0}, "num_steps", "at least 1"),
    (RunConfig, {"num_steps": 3_000_000_000}, "num_steps", "at most"),
    (
        RunConfig,
        {"num_steps": 1_000_000, "checkpoint_every": 1},
        "checkpoint_every",
        "at most 100000 checkpoints",
    ),
    (RunConfig, {"checkpoint_every": -1}, "checkpoint_every", "0 (start and end"),
    (RunConfig, {"checkpoint_steps": (1001,)}, "checkpoint_steps", "[0, num_steps"),
    (RunConfig, {"max_to_keep": -1}, "max_to_keep", "0 (all)"),
    (RunConfig, {"parent_step": 3}, "parent_step", "needs a parent"),
    (RunConfig, {"parent_step": -2, "parent": "x"}, "parent_step", "-1 (the last"),
    (RunConfig, {"axes": {"parent_step": (3,)}}, "axes.parent_step", "a parent"),
    (
        RunConfig,
        {"axes": {"parent_step": (3,)}, "parent": "x", "parent_step": 3},
        "parent_step",
        "axis of the run as well",
    ),
    (RunConfig, {"parent_member": {"seed": 1}}, "parent_member", "needs a parent"),
    (Experiment, {"axes": {"parent_step": (3,)}}, "axes.parent_step", "has a parent"),
    (RunConfig, {"stage": {"kind": "ppo"}}, "stage.kind", "policy_gradient, "),
    (RunConfig, {"stage": {"kind": "star", "num_epochs": 0}}, "stage.num_epochs", "1"),
    (RunConfig, {"stage": 3}, "stage", "mapping"),
    (RunConfig, {"hypers": {"p_cot": "0.1"}}, "hypers.p_cot", "number"),
    (RunConfig, {"axes": {"p_cot": (0.1, 0.1)}}, "axes.p_cot", "distinct"),
    (RunConfig, {"axes": {"p_cot": (0.1, 0.1 + 1e-10)}}, "axes.p_cot", "as float32"),
    (RunConfig, {"axes": {"p_cot": (0.1, 1.5)}}, "axes.p_cot", "in [0, 1]"),
    (RunConfig, {"axes": {"p_cot": ()}}, "axes.p_cot", "at least one value"),
    (RunConfig, {"axes": {"pcot": (0.1,)}}, "axes.pcot", "did you mean 'p_cot'"),
    (Experiment, {"axes": {"p_cot": (0.1,)}}, "axes.seed", "at least one seed"),
    (Experiment, {"axes": {"seed": (-1,)}}, "axes.seed", "in [0, 4294967295]"),
    (Experiment, {"axes": {"seed": (2**32,)}}, "axes.seed", "in [0, 4294967295]"),
    (Experiment, {"axes": {"seed": (2**64,)}}, "axes.seed", "in [0, 4294967295]"),
    (Experiment, {"axes": {"seed": (0.5,)}}, "axes.seed", "whole number"),
    (
        Experiment,
        {
            "axes": {"seed": (0,), "p_cot": (0.1,)},
            "runs": {"a": {"axes": {"p_cot": (0.2,)}}},
        },
        "runs.a.axes",
        "already an axis",
    ),
    (Experiment, {"runs": {"../a": {}}}, "runs", "must be a name"),
    (Experiment, {"runs": {"a": {"num_steps": 0}}}, "runs.a.num_steps", "at least 1"),
    (Experiment, {"task": {"kind": "nowhere:Task"}}, "task.kind", "cannot be imported"),
    (Experiment, {"task": {"kind": "json:loads"}}, "task.kind", "derives from Task"),
    (ParityConfig, {"num_bit": 4}, "num_bit", "did you mean 'num_bits'?"),
    (RunConfig, {"hypers": {"p_cott": 0.1}}, "hypers.p_cott", "did you mean 'p_cot'?"),
    (
        RunConfig,
        {"stage": {"kind": "policy_gradient", "rollout": {"num_prompt": 1}}},
        "stage.rollout.num_prompt",
        "did you mean 'num_prompts'?",
    ),
]


@pytest.mark.parametrize(("kind", "values", "name", "allowed"), BAD)
def test_bad_values(kind, values, name, allowed):
    with pytest.raises(ConfigError) as info:
        from_dict(kind, values)
    error = info.value
    assert error.name == name and allowed in str(error)
    assert str(error).startswith(f"{name}=") and "\n" not in str(error)


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_of_every_number(name):
    low, high = BOUNDS[name]
    wrong = [low - 0.1, float("nan"), float("inf"), *([1.1] if high == 1 else [])]
    for value in wrong:
        for where, values in (("hypers", value), ("axes", (value,))):
            with pytest.raises(ConfigError, match="must be") as info:
                from_dict(RunConfig, {where: {name: values}})
            assert info.value.name == f"{where}.{name}"
    assert [f.name for f in dataclasses.fields(Hypers)] == list(BOUNDS)


def test_checkpoints_are_scheduled_by_step():
    assert Schedule(num_steps=9).saved_steps() == (0, 9)
    run = Schedule(num_steps=100, checkpoint_every=40, checkpoint_steps=(3, 40))
    assert run.saved_steps() == (0, 3, 40, 80, 100)
    run = Schedule(num_steps=64, checkpoint_powers_of_two=True)
    assert run.saved_steps() == (0, 1, 2, 4, 8, 16, 32, 64)


def test_scheduled_checkpoints_and_the_newest_are_kept():
    run = Schedule(num_steps=100, checkpoint_every=10)
    assert run.kept_steps([0, 10, 15]) == (0, 10, 15)  # 15: stopped there
    assert run.kept_steps([0, 10, 15, 20]) == (0, 10, 20)
    few = dataclasses.replace(run, max_to_keep=2)
    assert few.kept_steps([0, 10, 20]) == (10, 20)
    assert few.kept_steps([10, 20, 25, 30]) == (20, 30)
    assert few.kept_steps([]) == ()


def test_the_loop_returns_for_records_evaluations_and_checkpoints():
    run = Schedule(num_steps=10, log_every=4, eval_every=6, checkpoint_steps=(5,))
    steps, step = [], -1
    while step < 10:
        step = run.next_record(step)
        steps.append(step)
    assert steps == [0, 4, 5, 6, 8, 10]
    assert [step for step in steps if run.is_evaluated(step)] == [0, 6, 10]


def with_run(name, **fields):
    experiment = tiny_experiment()
    run = dataclasses.replace(experiment.runs[name], **fields)
    return dataclasses.replace(experiment, runs=experiment.runs.copy({name: run}))


def rewarded(*names):
    return dataclasses.replace(POLICY_GRADIENT, rollout=RolloutConfig(4, 4, names))


def priced(stage):
    return {"stage": stage, "hypers": Hypers(length_price=0.1)}


def weighted(stage, *weights):
    rollout = RolloutConfig(4, 2, ("e2e", "cot"), weights)
    return dataclasses.replace(stage, rollout=rollout)


TWO = PolicyGradientConfig(RolloutConfig(4, 2))
# What cannot be, of runs together: known before anything is built.
IMPOSSIBLE = {
    "unknown parent is a path": (
        with_run("pretrain", parent="grpo"),
        "runs.pretrain.parent",
        "circle",
    ),
    "a step without checkpoint": (
        with_run("grpo", parent_step=3),
        "runs.grpo.parent_step",
        "0, 2, 4",
    ),
    "one step of an axis": (
        with_run("grpo", axes=FrozenDict({"parent_step": (2, 3)})),
        "runs.grpo.axes.parent_step",
        "0, 2, 4",
    ),
    "a parent that is not there": (
        with_run("grpo", parent_member=FrozenDict({"seed": 2})),
        "runs.grpo.parent_member.seed",
        "parent's (0, 1)",
    ),
    "shares above one": (
        with_run(
            "pretrain",
            task=ParityConfig(4, leap=2),
            axes=FrozenDict({"p_leap": (0.1, 0.9)}),
        ),
        "runs.pretrain.axes.p_leap",
        "at most 1",
    ),
    "leaps of multiplication": (
        with_run("pretrain", task=MultiplicationConfig(2), hypers=Hypers(p_leap=0.1)),
        "runs.pretrain.hypers.p_leap",
        "no leap chains",
    ),
    "another model than the parent's": (
        with_run("grpo", model=gpt2(3, 64)),
        "runs.grpo.parent",
        "model.depth is 1 there, 3 here",
    ),
    "a price that STaR cannot have": (
        with_run("grpo", **priced(STAR)),
        "runs.grpo.hypers.length_price",
        "0 with STaR",
    ),
    "a parent of what starts from 0": (
        dataclasses.replace(
            tiny_experiment(),
            model=LinearConfig(),
            runs=FrozenDict(
                first=RunConfig(stage=LinearPretrainConfig(), num_steps=2),
                child=RunConfig(
                    stage=LinearPretrainConfig(), num_steps=2, parent="first"
                ),
            ),
        ),
        "runs.child.parent",
        "must be empty",
    ),
    "rewards that STaR cannot keep": (
        with_run("grpo", stage=weighted(STAR, 0.6, 0.3)),
        "runs.grpo.stage.rollout.reward_weights",
        "must add up to 1 with STaR, not 0.9",
    ),
    "a price that the std divides away": (
        with_run("grpo", **priced(TWO)),
        "runs.grpo.hypers.length_price",
        "no size with num_generations=2",
    ),
    "the linear model's stage on another": (
        with_run("pretrain", stage=LinearPretrainConfig()),
        "model.kind",
        "must be 'linear'",
    ),
    "the linear model on leaps": (
        dataclasses.replace(
            tiny_experiment(), task=ParityConfig(4, 2), model=LinearConfig()
        ),
        "task.leap",
        "must be 1",
    ),
    "nothing to run": (tiny_experiment(runs=FrozenDict()), "runs", "at least one"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_runs_that_cannot_be(name):
    experiment, field, allowed = IMPOSSIBLE[name]
    with pytest.raises(ConfigError) as info:
        runs = resolve(experiment)
        check_files(runs, [*runs], None)
    assert info.value.name == field and allowed in str(info.value)


def test_a_kind_is_of_the_package_only():
    """One of the user's own would stand for another class where config.json is read."""
    told = r"'parity' is of parity_jax only; .* it is named test_config:Own$"
    with pytest.raises(TypeError, match=told):

        class Own(TaskConfig):
            kind = "parity"


def test_a_shared_axis_is_named_where_it_is():
    axes = FrozenDict({"seed": (0,), "p_leap": (0.1, 0.9)})
    one = with_run("pretrain", task=ParityConfig(4, leap=2))
    with pytest.raises(ConfigError, match=r"^axes\.p_leap="):
        resolve(dataclasses.replace(one, axes=axes))


def test_what_is_nearly_refused_is_allowed():
    assert resolve(with_run("grpo", **priced(POLICY_GRADIENT)))
    unscaled = dataclasses.replace(TWO, scale_rewards="none")
    assert resolve(with_run("grpo", **priced(unscaled)))
    assert PolicyGradientConfig(kl_estimator="k1", num_iterations=2).kl_in == "loss"
    assert PolicyGradientConfig(kl_estimator="k1", kl_in="reward").num_iterations == 1
    alone = reinforce(rollout=RolloutConfig(num_generations=1))
    assert alone.rollout.num_generations == 1


def test_a_resolved_run_has_no_optional_field_and_equals_its_json():
    experiment = with_run("grpo", axes=FrozenDict({"temperature": (0.5, 1.0)}))
    runs = resolve(experiment)
    assert list(runs) == ["pretrain", "grpo"]
    grpo = runs["grpo"]
    assert grpo.parent.step == 4 and grpo.parent.sibling == "pretrain"
    assert list(grpo.axes) == ["temperature", "seed"]
    assert grpo.model.mlp_width > 0 and grpo.model.init_std > 0
    assert all(run.task is not None for run in runs.values())
    again = from_dict(ResolvedRun, json.loads(json.dumps(to_dict(grpo))))
    assert again == grpo


def test_differences_name_what_differs():
    old, new = to_dict(gpt2(2, 64)), to_dict(gpt2(4, 64, bias=False))
    assert lines_of(differences(old, new, "model")) == (
        "model.bias is True there, False here; model.depth is 2 there, 4 here"
    )
    assert differences({"a": (1, 2)}, {"a": [1, 2]}) == []
    assert [d.path for d in differences({"a": 1}, {"b": 2})] == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(20251125, "20251125"), (0.1, "0.1"), (2.0, "2"), (1e-6, "1e-06"), (2**31, None)],
)
def test_numbers_of_labels_are_whole_and_can_be_typed_back(value, text):
    assert number_text(value) == (text or str(value))
    label = {"seed": value, "p_cot": 0.25}
    assert parse_label(label_text(label)) == label


@pytest.mark.parametrize("text", ["seed", "seed=x", "=3", "seed=1,seed=2", "seed="])
def test_labels_that_cannot_be_read(text):
    with pytest.raises(ConfigError, match="member="):
        parse_label(text)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (frozenset, frozenset({1})),
        (bytes, b"a"),
        (list[int], [1]),
        (Path, Path("a")),
        (tuple[int, str], (1, "a")),
        (dict[str, int], None),
    ],
)
def test_a_field_that_no_file_could_hold_is_told_by_its_type(kind, value):
    """Not by its value, which may be just what the annotation says."""
    field = ("x", kind, dataclasses.field(default_factory=lambda: value))
    own = dataclasses.make_dataclass(
        "Own", [field], bases=(PretrainConfig,), frozen=True
    )
    with pytest.raises(ConfigError, match=r"^x='.*': is no type of a config"):
        from_dict(own, {"kind": kind_of(own), "x": value})


def test_a_field_that_is_no_argument_is_told():
    field = ("x", int, dataclasses.field(default=3, init=False))
    own = dataclasses.make_dataclass(
        "Own", [field], bases=(PretrainConfig,), frozen=True
    )
    with pytest.raises(ConfigError, match=r"^x='int': must be an argument"):
        from_dict(own, {"kind": kind_of(own), "x": 3})
