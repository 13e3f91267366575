"""Every option of a stage changes its programs, or is refused: none is ignored."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr
from small_worlds import make_table
from tiny import POLICY_GRADIENT, PRETRAIN, STAR

from parity_jax.config import ConfigError
from parity_jax.config.convert import field_types
from parity_jax.evaluate import EvaluateConfig, make_evaluate
from parity_jax.hypers import Hypers
from parity_jax.optim import OptimizerConfig
from parity_jax.tasks import ParityConfig
from parity_jax.types import Data

ALL = OptimizerConfig(decay_steps=9, max_grad_norm=1.0)
BASES = {
    "pretrain": PRETRAIN,
    "star": STAR,
    "grpo": POLICY_GRADIENT,
    "everything": dataclasses.replace(
        POLICY_GRADIENT,
        num_iterations=2,
        kl_estimator="k3",
        zero_std_groups="resample",
        optimizer=ALL,
    ),
    "plain": dataclasses.replace(
        POLICY_GRADIENT, baseline="none", scale_rewards="none", loss_type="reinforce"
    ),
}
TASK = ParityConfig(3).make()
MODEL = make_table(TASK)
SCORED = make_evaluate(EvaluateConfig(4, (1.0,)), TASK, MODEL)


def other_values(kind, value):
    """A few values of a field that are not the one it has."""
    if typing.get_origin(kind) is typing.Literal:
        return [other for other in typing.get_args(kind) if other != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value or 2]
    return [value / 2 or 0.5] if isinstance(value, float) else []


def variants(cfg):
    """(path, config) with one field changed each; those that are refused are left."""
    for name, kind in field_types(type(cfg)).items():
        value = getattr(cfg, name)
        if dataclasses.is_dataclass(value):
            inner = [(f"{name}.{path}", other) for path, other in variants(value)]
        else:
            inner = [(f"{name}={other}", other) for other in other_values(kind, value)]
        for path, other in inner:
            try:
                yield path, dataclasses.replace(cfg, **{name: other})
            except ConfigError:
                continue


def program(cfg, evaluate=SCORED):
    """What a member computes, as text; a refusal is a ConfigError."""
    stage = cfg.make(TASK, MODEL, evaluate)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    fields = [field.name for field in dataclasses.fields(Hypers)]
    hypers = Hypers(**dict.fromkeys(fields, number))
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(stage.init, key, hypers, None)

    def member(key, hypers, state):
        start, (after, metrics) = (
            stage.init(key, hypers, None),
            stage.step(state, Data()),
        )
        kept = [(x.params, x.opt_state) for x in (start, after)]
        return kept, metrics, stage.evaluate(state, Data())

    traced = jax.make_jaxpr(member)(key, hypers, state)
    alive, _ = dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    constants = [np.asarray(x).tobytes() for x in traced.consts]
    return f"{alive} {constants} {cfg.sequences_per_step}"


@pytest.mark.parametrize("name", BASES)
def test_no_option_of_a_stage_is_ignored(name):
    cfg = BASES[name]
    before, ignored, num = program(cfg), [], 0
    for path, other in variants(cfg):
        num += 1
        try:
            if program(other) == before:
                ignored.append(path)
        except ConfigError:
            continue
    assert num >= 5 and ignored == []


def test_no_option_of_evaluation_is_ignored():
    cfg = EvaluateConfig(4, (1.0,))
    programs = {
        path: program(PRETRAIN, make_evaluate(other, TASK, MODEL))
        for path, other in variants(cfg)
    }
    assert len(programs) >= 5 and program(PRETRAIN) not in programs.values()
