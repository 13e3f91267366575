"""Flags: every spelling that is documented, and one line for every other."""

import pytest
from flax.core import FrozenDict
from tiny import tiny_experiment

from parity_jax.config import ConfigError
from parity_jax.config.overrides import Override, apply, parse
from parity_jax.models import RopeScaling
from parity_jax.stages import StarConfig
from parity_jax.tasks import MultiplicationConfig

BOTH = [
    ("task.num_bits", "5"),
    ("axes.seed", "20251125,20251126"),
    ("runs.grpo.hypers.learning_rate", "-1e-4"),
]


@pytest.mark.parametrize(("path", "value"), BOTH)
def test_both_spellings(path, value):
    expected = [Override(path, value)]
    assert parse([f"--config.{path}={value}"]) == expected
    assert parse([f"--config.{path}", value]) == expected
    assert parse([f"-config.{path}", value]) == expected


def test_booleans_may_stand_alone():
    flags = ["--config.model.bias", "--noconfig.model.bias", "--config.a.b=false"]
    assert parse(flags) == [
        Override("model.bias", None),
        Override("model.bias", "false"),
        Override("a.b", "false"),
    ]


@pytest.mark.parametrize("argument", ["--wokdir=x", "stray", "-x"])
def test_what_is_no_override_is_an_error(argument):
    with pytest.raises(ConfigError, match=argument.lstrip("-").partition("=")[0]):
        parse(["--config.task.num_bits=5", argument])


def edited(*pairs):
    return apply(tiny_experiment(), [Override(*pair) for pair in pairs])


def test_values_are_read_by_the_type_of_their_field():
    experiment = edited(
        ("task.num_bits", "5"),
        ("model.bias", None),
        ("runs.pretrain.hypers.learning_rate", "0.5"),
        ("runs.grpo.stage.rollout.rewards", "e2e,cot"),
        ("runs.grpo.stage.rollout.reward_weights", "(1, 0.5)"),
        ("runs.grpo.checkpoint_steps", "[1]"),
        ("evaluate.temperatures", "1"),
        ("axes.seed", "7,8,9,"),
        ("axes.p_cot", "0.1,0.2"),
        ("runs.grpo.task", "none"),
    )
    assert experiment.task.num_bits == 5 and experiment.model.bias is True
    assert experiment.runs["pretrain"].hypers.learning_rate == 0.5
    rollout = experiment.runs["grpo"].stage.rollout
    assert rollout.rewards == ("e2e", "cot") and rollout.reward_weights == (1.0, 0.5)
    assert experiment.runs["grpo"].checkpoint_steps == (1,)
    assert experiment.evaluate.temperatures == (1.0,)
    assert experiment.axes == FrozenDict({"seed": (7, 8, 9), "p_cot": (0.1, 0.2)})


def test_fields_of_an_option_that_is_off_turn_it_on():
    found = edited(("model.positions", "rotary"), ("model.rope_scaling.factor", "2.5"))
    assert found.model.rope_scaling == RopeScaling(factor=2.5)


def test_the_last_one_of_a_field_wins_also_of_a_tuple():
    experiment = edited(("axes.seed", "1,2"), ("axes.seed", "3"))
    assert experiment.axes["seed"] == (3,)


def test_a_number_beside_its_axis_would_do_nothing():
    axis, number = "--config.axes.p_cot=0.1,0.2", "--config.runs.grpo.hypers.p_cot=0.5"
    with pytest.raises(ConfigError) as info:
        apply(tiny_experiment(), parse([number, axis]))
    told = "runs.grpo.hypers.p_cot='0.5': has no effect beside the axis p_cot"
    assert str(info.value) == told


def test_prompts_beside_a_file_of_them_would_do_nothing():
    edits = [("evaluate.num_prompts", "7"), ("eval_file", "x.txt")]
    with pytest.raises(ConfigError, match="has no effect beside eval_file="):
        edited(*edits)
    assert edited(*edits, ("eval_file", "''")).evaluate.num_prompts == 7


def test_an_empty_text_is_said_in_quotes():
    for text in ("''", '""'):
        assert edited(("runs.grpo.parent", text)).runs["grpo"].parent == ""


def test_an_empty_tuple_takes_an_axis_away():
    experiment = edited(("axes.p_cot", "0.1,0.2"), ("axes.p_cot", "()"))
    assert "p_cot" not in experiment.axes


def test_another_kind_starts_from_its_own_defaults():
    for path in ("task", "task.kind"):
        experiment = edited((path, "multiplication"), ("task.num_digits", "3"))
        assert experiment.task == MultiplicationConfig(3)
    assert edited(("runs.grpo.stage", "star")).runs["grpo"].stage == StarConfig()


def test_an_edit_that_a_later_one_takes_back_is_refused():
    """A kind starts from its defaults: what was typed before it would vanish."""
    with pytest.raises(ConfigError, match="num_bits='6': is taken back by task=multi"):
        edited(("task.num_bits", "6"), ("task", "multiplication"))
    with pytest.raises(
        ConfigError, match=r"num_bits='6': is taken back by task\.kind=p"
    ):
        edited(("task.num_bits", "6"), ("task.kind", "parity"))
    edited(("task.kind", "parity"), ("task.num_bits", "6"))


WRONG = [
    ("evaluat.num_prompts", "4", "evaluat", "did you mean 'evaluate'"),
    ("axes.p_cott", "0.1", "axes.p_cott", "did you mean 'p_cot'"),
    ("task.num_bits", "four", "task.num_bits", "a whole number"),
    ("axes.p_cot", "", "axes.p_cot", "needs a value; of an empty tuple it is ()"),
    ("task.num_bits", "4.5", "task.num_bits", "a whole number"),
    ("task.num_bits", "", "task.num_bits", "a whole number"),
    ("task.num_bits", None, "task.num_bits", "needs a value"),
    ("task.num_bits", "none", "task.num_bits", "a whole number"),
    ("task", "none", "task.kind", "must be one of chains, multiplication"),
    ("task.num_bits.x", "1", "task.num_bits.x", "unknown field"),
    ("model.bias", "yes", "model.bias", "true or false"),
    ("runs.grpo", "3", "runs.grpo", "fields of its own"),
    ("runs.grop.num_steps", "3", "runs.grop", "did you mean 'grpo'"),
    ("num_bits", "4", "num_bits", "there is task.num_bits; valid: axes"),
    ("runs.grpo.num_prompts", "4", "runs.grpo.num_prompts", "rollout.num_prompts"),
    ("runs.grpo.hypers.p_cot", "much", "runs.grpo.hypers.p_cot", "a number"),
    ("runs.grpo.hypers.p_cot", "1e999", "runs.grpo.hypers.p_cot", "finite"),
    ("runs.grpo.hypers.p_cot", "nan", "runs.grpo.hypers.p_cot", "finite"),
    ("runs.grpo.task.num_bits", "5", "runs.grpo.task", "kind first, of chains, mul"),
    ("model.rope_scaling.factr", "2", "model.rope_scaling.factr", "'factor'"),
    ("model.rope_scaling.factor", "2", "model.rope_scaling", "positions='learned'"),
    ("axes.seed", "0,4294967296", "axes.seed", "in [0, 4294967295]"),
    ("axes.seed", "a,b", "axes.seed", "a number"),
    ("axes.seed", "1" + "0" * 400, "axes.seed", "finite"),
    ("runs.grpo.hypers.p_cot", "1" + "0" * 400, "runs.grpo.hypers.p_cot", "finite"),
    ("runs.grpo.chunk_seconds", "1" + "0" * 400, "runs.grpo.chunk_seconds", "finite"),
    (
        "model.num_positions",
        "1" + "0" * 400,
        "model.num_positions",
        "at most 2147483647",
    ),
    ("population.vmap_width", "9" * 12, "population.vmap_width", "at most 2147483647"),
    ("axes.seed", "()", "axes.seed", "at least one seed"),
    ("runs.grpo.parent", "", "runs.grpo.parent", "an empty text is \"''\""),
    ("eval_file", " ", "eval_file", "an empty text is \"''\""),
]


@pytest.mark.parametrize(("path", "value", "name", "allowed"), WRONG)
def test_wrong_overrides_are_named(path, value, name, allowed):
    with pytest.raises(ConfigError) as info:
        edited((path, value))
    assert info.value.name.startswith(name) and allowed in str(info.value)
    assert "\n" not in str(info.value)
