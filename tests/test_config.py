"""Configs: round trip, and one clear line for everything that is wrong."""

import dataclasses

import pytest
from flax.core import FrozenDict
from ml_collections import ConfigDict
from tiny import POLICY_GRADIENT, PRETRAIN, STAR, tiny_experiment

from parity_jax import config as c
from parity_jax.config import ConfigError, from_dict, to_config_dict, to_dict
from parity_jax.runs import run_experiment
from parity_jax.types import Hypers

CONFIGS = [
    c.ParityConfig(6, 3),
    c.MultiplicationConfig(9),
    c.gpt2(4, 64, sliding_window=8, dtype="bfloat16"),
    c.mistral(8, 256),
    PRETRAIN,
    c.RolloutConfig(3, 2, ("e2e", "cot"), (1.0, 0.5), "multiplicative", 7),
    POLICY_GRADIENT,
    c.reinforce(std_eps=0.0),
    c.rloo(),
    c.dr_grpo(num_iterations=2, num_minibatches=2, kl_estimator="k3"),
    c.dapo(max_resamples=2),
    c.gspo(),
    STAR,
    c.EvaluateConfig(7, (0.5, 2.0)),
    c.PopulationConfig(2, 3),
    c.RunConfig(stage=STAR, parent="x", axes=FrozenDict({"p_cot": (0.1, 0.2)})),
    tiny_experiment(),
    Hypers(p_cot=0.5, beta=0.1),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda x: type(x).__name__)
def test_round_trip(config):
    assert from_dict(type(config), to_dict(config)) == config
    assert from_dict(type(config), to_config_dict(config).to_dict()) == config


@pytest.mark.parametrize("config", CONFIGS, ids=lambda x: type(x).__name__)
def test_hashable_and_frozen(config):
    assert hash(config) == hash(from_dict(type(config), to_dict(config)))
    field = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, field, None)


def test_defaults_are_complete_from_nothing():
    assert from_dict(c.Experiment, {}) == c.Experiment()
    assert from_dict(c.RunConfig, {"stage": {"kind": "star"}}).stage == c.StarConfig()


# (config, overrides, name of the field, what is allowed); every value is wrong
BAD = [
    (c.ParityConfig, {"num_bits": 1}, "num_bits", "at least 2"),
    (c.ParityConfig, {"num_bits": 4.0}, "num_bits", "type int"),
    (c.ParityConfig, {"num_bits": True}, "num_bits", "type int"),
    (c.ParityConfig, {"num_bits": 4, "leap": 5}, "leap", "in [1, 4]"),
    (c.ParityConfig, {"leap": 0}, "leap", "in [1, 16]"),
    (c.TransformerConfig, {"depth": 0}, "depth", "at least 1"),
    (c.TransformerConfig, {"num_heads": 3}, "num_heads", "divide width=128"),
    (c.TransformerConfig, {"num_kv_heads": 3}, "num_kv_heads", "divide num_heads=4"),
    (
        c.TransformerConfig,
        {"width": 12, "num_heads": 4, "positions": "rotary"},
        "num_heads",
        "head size 3 must be even",
    ),
    (
        c.TransformerConfig,
        {"positions": "rotory"},
        "positions",
        "did you mean 'rotary'",
    ),
    (c.TransformerConfig, {"dtype": "float16"}, "dtype", "valid: bfloat16, float32"),
    (c.TransformerConfig, {"dtype": 16}, "dtype", "valid: bfloat16, float32"),
    (c.TransformerConfig, {"bias": 1}, "bias", "type bool"),
    (c.TransformerConfig, {"init_std": "big"}, "init_std", "number"),
    (c.TransformerConfig, {"sliding_window": -1}, "sliding_window", "0 (off)"),
    (c.PretrainConfig, {"batch_size": 0}, "batch_size", "at least 1"),
    (c.PretrainConfig, {"weight_decay": -0.1}, "weight_decay", ">= 0"),
    (c.RolloutConfig, {"num_prompts": 0}, "num_prompts", "at least 1"),
    (c.RolloutConfig, {"num_generations": -1}, "num_generations", "at least 1"),
    (c.RolloutConfig, {"rewards": ()}, "rewards", "at least one"),
    (c.RolloutConfig, {"rewards": ("e2e", "cot")}, "reward_weights", "one weight"),
    (c.RolloutConfig, {"length_price": "square"}, "length_price", "valid: additive"),
    (c.RolloutConfig, {"num_unique_prompts": -1}, "num_unique_prompts", "0 (fresh)"),
    (c.PolicyGradientConfig, {"baseline": "mean"}, "baseline", "valid: batch"),
    (c.PolicyGradientConfig, {"loss_type": "ppo"}, "loss_type", "valid: bnpo"),
    (c.PolicyGradientConfig, {"std_ddof": 2}, "std_ddof", "0 or 1"),
    (c.PolicyGradientConfig, {"std_eps": -1.0}, "std_eps", ">= 0"),
    (c.PolicyGradientConfig, {"num_iterations": 0}, "num_iterations", "at least 1"),
    (c.PolicyGradientConfig, {"num_minibatches": 3}, "num_minibatches", "divide"),
    (c.PolicyGradientConfig, {"max_resamples": 0}, "max_resamples", "at least 1"),
    (
        c.PolicyGradientConfig,
        {"rollout": {"num_generations": 1}},
        "num_generations",
        "at least 2",
    ),
    (
        c.PolicyGradientConfig,
        {"rollout": {"num_generations": 1}, "baseline": "none"},
        "num_generations",
        "at least 2",
    ),
    (
        c.PolicyGradientConfig,
        {"baseline": "leave_one_out"},
        "scale_rewards",
        "'none' with baseline='leave_one_out'",
    ),
    (
        c.PolicyGradientConfig,
        {"baseline": "leave_one_out", "scale_rewards": "batch"},
        "scale_rewards",
        "'none' with baseline='leave_one_out'",
    ),
    (c.PolicyGradientConfig, {"kl_estimator": "k1"}, "kl_estimator", "k2 or k3"),
    (c.StarConfig, {"batch_size": 100}, "batch_size", "divide the 2048 samples"),
    (c.StarConfig, {"num_epochs": 0}, "num_epochs", "at least 1"),
    (c.StarConfig, {"weight_decay": -1.0}, "weight_decay", ">= 0"),
    (c.EvaluateConfig, {"num_prompts": 0}, "num_prompts", "at least 1"),
    (c.EvaluateConfig, {"temperatures": (1.0, 0.0)}, "temperatures", "positive"),
    (c.PopulationConfig, {"vmap_width": -1}, "vmap_width", "0 (automatic)"),
    (c.PopulationConfig, {"num_devices": -1}, "num_devices", "0 (automatic)"),
    (c.RunConfig, {"num_steps": 0}, "num_steps", "at least 1"),
    (c.RunConfig, {"log_every": 0}, "log_every", "at least 1"),
    (c.RunConfig, {"eval_every": 0}, "eval_every", "at least 1"),
    (c.RunConfig, {"checkpoint_every": -1}, "checkpoint_every", "0 (start and end"),
    (c.RunConfig, {"checkpoint_steps": (1001,)}, "checkpoint_steps", "[0, num_steps"),
    (c.RunConfig, {"checkpoint_steps": (-1,)}, "checkpoint_steps", "[0, num_steps"),
    (c.RunConfig, {"max_to_keep": -1}, "max_to_keep", "0 (all)"),
    (c.RunConfig, {"parent_step": 3}, "parent_step", "needs a parent"),
    (c.RunConfig, {"parent_step": -2, "parent": "x"}, "parent_step", "-1 (the last"),
    (c.RunConfig, {"axes": {"parent_step": (3,)}}, "axes.parent_step", "a parent"),
    (
        c.RunConfig,
        {"axes": {"parent_step": (-1,)}, "parent": "x"},
        "axes.parent_step",
        "whole number >= 0",
    ),
    (
        c.RunConfig,
        {"axes": {"parent_step": (3,)}, "parent": "x", "parent_step": 3},
        "parent_step",
        "axis of the run as well",
    ),
    (c.RunConfig, {"parent_member": {"seed": 1}}, "parent_member", "needs a parent"),
    (c.Experiment, {"axes": {"parent_step": (3,)}}, "axes.parent_step", "has a parent"),
    (c.RunConfig, {"stage": {"kind": "ppo"}}, "stage.kind", "policy_gradient, "),
    (
        c.RunConfig,
        {"stage": {"kind": "star", "num_epochs": 0}},
        "stage.num_epochs",
        "1",
    ),
    (c.RunConfig, {"stage": 3}, "stage", "mapping"),
    (c.RunConfig, {"hypers": {"p_cot": "0.1"}}, "hypers.p_cot", "number"),
    (c.RunConfig, {"axes": {"p_cot": (0.1, 0.1)}}, "axes.p_cot", "distinct"),
    (c.RunConfig, {"axes": {"p_cot": (0.1, 1.5)}}, "axes.p_cot", "in [0, 1]"),
    (c.RunConfig, {"axes": {"p_cot": ("a",)}}, "axes.p_cot", "number"),
    (c.RunConfig, {"axes": {"pcot": (0.1,)}}, "axes.pcot", "did you mean 'p_cot'"),
    (c.Experiment, {"axes": {"seed": ()}}, "axes.seed", "at least one seed"),
    (c.Experiment, {"axes": {"seed": (-1,)}}, "axes.seed", ">= 0"),
    (c.Experiment, {"axes": {"seed": (0.5,)}}, "axes.seed", "whole number"),
    (
        c.Experiment,
        {
            "axes": {"seed": (0,), "p_cot": (0.1,)},
            "runs": {"a": {"axes": {"p_cot": (0.2,)}}},
        },
        "runs.a.axes",
        "already an axis",
    ),
    (c.Experiment, {"runs": {"a": {"num_steps": 0}}}, "runs.a.num_steps", "at least 1"),
]


@pytest.mark.parametrize(("kind", "values", "name", "allowed"), BAD)
def test_bad_values(kind, values, name, allowed):
    with pytest.raises(ConfigError) as info:
        from_dict(kind, values)
    error = info.value
    assert error.name == name
    assert allowed in str(error)
    assert str(error).startswith(f"{name}={error.value!r}: ")
    assert "\n" not in str(error)


def test_checkpoints_are_scheduled_by_step():
    assert c.RunConfig(num_steps=9).scheduled_steps() == (0, 9)
    run = c.RunConfig(num_steps=100, checkpoint_every=40, checkpoint_steps=(3, 40))
    assert run.scheduled_steps() == (0, 3, 40, 80, 100)
    run = c.RunConfig(num_steps=64, checkpoint_powers_of_two=True)
    assert run.scheduled_steps() == (0, 1, 2, 4, 8, 16, 32, 64)


def test_scheduled_checkpoints_and_the_newest_are_kept():
    run = c.RunConfig(num_steps=100, checkpoint_every=10)
    assert run.kept_steps([0, 10, 15]) == (0, 10, 15)  # 15: stopped there
    assert run.kept_steps([0, 10, 15, 20]) == (0, 10, 20)
    few = dataclasses.replace(run, max_to_keep=2)
    assert few.kept_steps([0, 10, 20]) == (10, 20)
    assert few.kept_steps([10, 20, 25]) == (10, 20, 25)
    assert few.kept_steps([10, 20, 25, 30]) == (20, 30)
    assert few.kept_steps([]) == ()


BAD_HYPERS = [
    *[(name, -0.1) for name in c.HYPER_BOUNDS],
    *[(name, float("nan")) for name in c.HYPER_BOUNDS],
    *[(name, 1.1) for name, (_, high) in c.HYPER_BOUNDS.items() if high == 1],
    ("temperature", 0.0),
    ("delta", 0.5),
]


def test_every_hyper_has_bounds():
    assert [f.name for f in dataclasses.fields(Hypers)] == list(c.HYPER_BOUNDS)


@pytest.mark.parametrize(("name", "value"), BAD_HYPERS)
def test_bad_hypers(name, value):
    with pytest.raises(ConfigError, match="must be") as info:
        from_dict(c.RunConfig, {"hypers": {name: value}})
    assert info.value.name == f"hypers.{name}"
    with pytest.raises(ConfigError, match="must be") as info:
        from_dict(c.RunConfig, {"axes": {name: (value,)}})
    assert info.value.name == f"axes.{name}"


def test_shares_must_not_exceed_one():
    with pytest.raises(ConfigError, match="p_cot \\+ p_leap must be at most 1"):
        c.RunConfig(hypers=Hypers(p_cot=0.6, p_leap=0.5))


def priced(stage, **overrides):
    return {"stage": stage, "hypers": {"length_price": 0.1}} | overrides


@pytest.mark.parametrize(
    ("stage", "allowed"),
    [
        ({"kind": "star"}, "0 with STaR"),
        (
            {"kind": "policy_gradient", "rollout": {"num_generations": 2}},
            "no size with num_generations=2",
        ),
    ],
)
def test_length_prices_that_do_nothing_are_refused(stage, allowed):
    axis = {"length_price": (0.0, 0.1)}
    for run in (priced(stage), {"stage": stage, "axes": axis}):
        with pytest.raises(ConfigError, match=allowed) as info:
            from_dict(c.RunConfig, run)
        assert info.value.name == "hypers.length_price"
    with pytest.raises(ConfigError, match=allowed):
        from_dict(
            c.Experiment,
            {"axes": {"seed": (0,)} | axis, "runs": {"a": {"stage": stage}}},
        )
    from_dict(c.RunConfig, {"stage": stage})  # without a price


def test_what_is_nearly_refused_is_allowed():
    run = from_dict(c.RunConfig, priced({"kind": "policy_gradient"}))
    assert run.hypers.length_price > 0
    assert c.PolicyGradientConfig(kl_estimator="k1", num_iterations=2).kl_in == "loss"
    assert c.PolicyGradientConfig(kl_estimator="k1", kl_in="reward").num_iterations == 1
    alone = c.reinforce(rollout=c.RolloutConfig(num_generations=1))
    assert alone.rollout.num_generations == 1
    unscaled = {
        "kind": "policy_gradient",
        "rollout": {"num_generations": 2},
        "scale_rewards": "none",
    }
    assert from_dict(c.RunConfig, priced(unscaled)).hypers.length_price > 0


@pytest.mark.parametrize(
    ("kind", "values", "name", "nearest"),
    [
        (c.ParityConfig, {"num_bit": 4}, "num_bit", "num_bits"),
        (c.TransformerConfig, {"widht": 4}, "widht", "width"),
        (c.RunConfig, {"hypers": {"p_cott": 0.1}}, "hypers.p_cott", "p_cot"),
        (
            c.RunConfig,
            {"stage": {"kind": "policy_gradient", "rollout": {"num_prompt": 1}}},
            "stage.rollout.num_prompt",
            "num_prompts",
        ),
        (c.Experiment, {"evaluat": {}}, "evaluat", "evaluate"),
        (
            c.Experiment,
            {"runs": {"a": {"num_step": 1}}},
            "runs.a.num_step",
            "num_steps",
        ),
    ],
)
def test_unknown_keys_come_with_the_nearest_name(kind, values, name, nearest):
    with pytest.raises(ConfigError, match="unknown field") as info:
        from_dict(kind, values)
    assert info.value.name == name
    assert f"did you mean {nearest!r}?" in str(info.value)


def replace_run(name, **fields):
    experiment = tiny_experiment()
    run = dataclasses.replace(experiment.runs[name], **fields)
    return dataclasses.replace(experiment, runs=experiment.runs.copy({name: run}))


@pytest.mark.parametrize(
    ("experiment", "name", "allowed"),
    [
        (replace_run("grpo", parent="pretrian"), "runs.grpo.parent", "another run"),
        (replace_run("pretrain", parent="grpo"), "runs.pretrain.parent", "circle"),
        (replace_run("grpo", parent_step=3), "runs.grpo.parent_step", "(0, 2, 4)"),
        (
            replace_run("grpo", axes=FrozenDict({"parent_step": (2, 3)})),
            "runs.grpo.parent_step",
            "(0, 2, 4)",
        ),
        (
            replace_run("grpo", parent_member=FrozenDict({"seed": 2.0})),
            "runs.grpo.seed",
            "parent's (0, 1)",
        ),
        (
            replace_run("pretrain", axes=FrozenDict({"p_leap": (0.1, 0.9)})),
            "runs.pretrain.hypers.p_leap",
            "at most 1",
        ),
        (
            replace_run(
                "grpo",
                stage=dataclasses.replace(
                    POLICY_GRADIENT, rollout=c.RolloutConfig(4, 4, ("e2",))
                ),
            ),
            "runs.grpo.stage.rewards",
            "did you mean 'e2e'",
        ),
        (
            replace_run(
                "grpo",
                stage=dataclasses.replace(
                    POLICY_GRADIENT, rollout=c.RolloutConfig(4, 4, ("math:nothing",))
                ),
            ),
            "runs.grpo.stage.rewards",
            "nothing",
        ),
    ],
)
def test_runs_that_cannot_be_are_refused_before_anything_is_written(
    experiment, name, allowed, tmp_path
):
    with pytest.raises(ConfigError) as info:
        run_experiment(experiment, tmp_path / "run", quiet=True)
    assert info.value.name == name
    assert allowed in info.value.allowed
    assert not (tmp_path / "run").exists()


def test_overrides_never_mutate():
    experiment = tiny_experiment()
    before = to_dict(experiment)
    values = to_dict(experiment)
    values["runs"]["grpo"]["hypers"]["learning_rate"] = 1.0
    assert from_dict(c.Experiment, values) != experiment
    dictionary = to_config_dict(experiment)
    dictionary.runs.grpo.num_steps = 77
    assert isinstance(dictionary, ConfigDict)
    c.gpt2(depth=9)
    assert c.gpt2().depth == 2
    assert to_dict(experiment) == before
