"""Updates against the library that is copied most, torch's AdamW."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import FrozenDict
from small_runs import assert_identical, read
from tiny import (
    PRETRAIN,
    STAR,
    random_params,
    tiny_experiment,
    tiny_gpt2,
    tiny_mistral,
)

from parity_jax.analysis import load_metrics
from parity_jax.config import ConfigError
from parity_jax.experiment import RunConfig
from parity_jax.hypers import Hypers
from parity_jax.optim import Optimizer, OptimizerConfig, is_decayed
from parity_jax.runs import run_experiment
from parity_jax.tasks import ParityConfig
from parity_jax.types import RUNNING, StageState

torch = pytest.importorskip("torch")


def params_of(cfg):
    return random_params(cfg.make(ParityConfig(4).make()))


def names_of(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(k, simple=True, separator="."): x for k, x in leaves}


def a_state(optimizer, params, hypers):
    key, step = jax.random.key(0), jnp.int32(0)
    opt_state = optimizer.transformation.init(params)
    return StageState(key, step, params, opt_state, hypers, jnp.int32(RUNNING), None)


def test_weight_decay_is_that_of_torch_and_leaves_norms_and_biases_alone():
    """Two steps on given gradients; kernels and embeddings are the decayed group."""
    params = params_of(tiny_gpt2())
    optimizer = OptimizerConfig(weight_decay=0.3).make()
    state = a_state(optimizer, params, Hypers(learning_rate=0.01))
    theirs = {
        name: torch.nn.Parameter(torch.tensor(x))
        for name, x in names_of(params).items()
    }
    plain = [x for name, x in theirs.items() if name.endswith(("bias", "scale"))]
    decayed = [x for n, x in theirs.items() if n.endswith(("kernel", "embedding"))]
    assert (len(plain), len(decayed), len(theirs)) == (12, 8, 20)
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed}]
    adamw = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.3)
    apply = jax.jit(optimizer.apply)
    rng = np.random.default_rng(1)
    for _ in range(2):
        grads = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f"), params)
        state, norm = apply(state, grads)
        for name, x in names_of(grads).items():
            theirs[name].grad = torch.tensor(x)
        adamw.step()
        squares = sum(float((x**2).sum()) for x in jax.tree.leaves(grads))
        np.testing.assert_allclose(norm, squares**0.5, rtol=1e-5)
    for name, x in names_of(state.params).items():
        np.testing.assert_allclose(x, theirs[name].detach(), atol=1e-5, err_msg=name)


def test_without_biases_only_norms_are_not_decayed():
    flags = names_of(is_decayed(params_of(tiny_mistral())))
    norms = ("final_norm", "blocks_0.attention_norm", "blocks_0.mlp_norm")
    undecayed = {name for name, is_on in flags.items() if not is_on}
    assert undecayed == {f"{name}.scale" for name in norms}
    assert len(flags) == 12


def test_the_learning_rate_falls_along_a_cosine_and_stays():
    """Plain SGD on a gradient of 1 shows it; the rate of a step is times `factor`."""
    optimizer = OptimizerConfig("sgd", decay_steps=4, final_lr_ratio=0.2).make()
    state = a_state(optimizer, {"w": jnp.zeros(3)}, Hypers(learning_rate=0.5))
    for step, cosine in enumerate((1, 0.5**0.5, 0, -(0.5**0.5), -1, -1)):
        rate = 0.5 * (0.2 + 0.8 * (1 + cosine) / 2)
        at = state._replace(step=jnp.int32(step))
        for factor in (1.0, 0.5):
            new, _ = optimizer.apply(at, {"w": jnp.ones(3)}, factor)
            np.testing.assert_allclose(new.params["w"], -factor * rate, rtol=1e-6)
            assert new.step == step


WARMUP, DECAY, LAST = 3, 8, 0.1


def test_warm_up_clipping_and_adamw_are_those_of_torch():
    """Ten steps on gradients of norms on both sides of the bound; b2 as for Llama."""
    cfg = OptimizerConfig(
        weight_decay=0.1,
        b1=0.8,
        b2=0.95,
        eps=1e-6,
        max_grad_norm=1.0,
        warmup_steps=WARMUP,
        decay_steps=DECAY,
        final_lr_ratio=LAST,
    )
    optimizer, params = cfg.make(), params_of(tiny_mistral())
    state = a_state(optimizer, params, Hypers(learning_rate=0.03))
    theirs = {
        n: torch.nn.Parameter(torch.tensor(x)) for n, x in names_of(params).items()
    }
    plain = [x for name, x in theirs.items() if name.endswith("scale")]
    decayed = [x for name, x in theirs.items() if not name.endswith("scale")]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed}]
    adamw = torch.optim.AdamW(
        groups, lr=0.03, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1
    )

    def rate(step):
        if step < WARMUP:
            return step / WARMUP
        done = min((step - WARMUP) / (DECAY - WARMUP), 1)
        return LAST + (1 - LAST) * (1 + math.cos(math.pi * done)) / 2

    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, rate)
    apply, rng, is_clipped = jax.jit(optimizer.apply), np.random.default_rng(1), []
    num_params = sum(x.size for x in jax.tree.leaves(params))
    for step in range(10):
        size = num_params**-0.5 * (0.5 if step % 3 == 1 else 5)
        grads = jax.tree.map(
            lambda x, size=size: rng.normal(0, size, x.shape).astype("f"), params
        )
        state, norm = apply(state, grads)
        state = state._replace(step=state.step + 1)
        for name, x in names_of(grads).items():
            theirs[name].grad = torch.tensor(x)
        before = torch.nn.utils.clip_grad_norm_(list(theirs.values()), 1.0)
        np.testing.assert_allclose(norm, before, rtol=1e-5)  # not the clipped one
        is_clipped.append(bool(norm > 1))
        adamw.step()
        schedule.step()
        for name, x in names_of(state.params).items():
            np.testing.assert_allclose(
                x, theirs[name].detach(), atol=1e-5, err_msg=f"{step} {name}"
            )
        if step == 0:
            assert_identical(state.params, params)  # the rate is 0
    assert set(is_clipped) == {True, False}
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.params, params)
    assert min(jax.tree.leaves(moved)) > 0.02


def test_warm_up_without_decay_stays_and_sgd_is_clipped_too():
    cfg = OptimizerConfig("sgd", warmup_steps=4, max_grad_norm=2.0)
    optimizer = cfg.make()
    state = a_state(optimizer, {"w": jnp.zeros(4)}, Hypers(learning_rate=0.5))
    for step, part in enumerate((0, 0.25, 0.5, 0.75, 1, 1, 1)):
        at = state._replace(step=jnp.int32(step))
        new, norm = optimizer.apply(at, {"w": jnp.full(4, 3.0)})
        np.testing.assert_allclose(new.params["w"], -0.5 * part, rtol=1e-6)
        assert norm == 6


def test_defaults_add_nothing_to_the_program():
    """Neither operations nor state: checkpoints and numbers are those of before."""
    params = {"kernel": jnp.ones(3)}

    def program(optimizer):
        state = a_state(optimizer, params, Hypers())
        return str(jax.make_jaxpr(optimizer.apply)(state, params)), state.opt_state

    plain, state = program(OptimizerConfig().make())
    decay = optax.add_decayed_weights(0.0, mask=is_decayed)
    adamw = optax.chain(optax.scale_by_adam(), decay)
    expected = program(Optimizer(adamw, optax.constant_schedule(1.0)))
    assert (plain, jax.tree.structure(state)) == (
        expected[0],
        jax.tree.structure(expected[1]),
    )
    for fields in ({"max_grad_norm": 1.0}, {"warmup_steps": 2}):
        assert program(OptimizerConfig(**fields).make())[0] != plain


def test_names_decide_what_is_decayed_whatever_the_shape():
    """Parameters of several blocks may be stacked, norms of queries and keys too."""
    attention = {
        "query": {"kernel": np.ones((2, 4, 2, 8)), "bias": np.ones((2, 2, 8))},
        "query_norm": {"scale": np.ones((2, 8))},
        "key_norm": {"scale": np.ones((2, 8))},
    }
    params = {"blocks": attention, "embed": {"embedding": np.ones((5, 4))}}
    flags = names_of(is_decayed(params))
    assert {name for name, is_on in flags.items() if is_on} == {
        "blocks.query.kernel",
        "embed.embedding",
    }
    optimizer = OptimizerConfig(weight_decay=0.5).make()
    state = a_state(optimizer, params, Hypers(learning_rate=0.1))
    state, _ = optimizer.apply(state, jax.tree.map(np.zeros_like, params))
    for name, x in names_of(state.params).items():
        np.testing.assert_allclose(x, 0.95 if flags[name] else 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps=-1: must be 0 (none) or positive"),
        (
            {"warmup_steps": 5, "decay_steps": 5},
            "decay_steps=5: must be 0 or more than warmup_steps=5, which it includes",
        ),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0: must be a finite number >= 0"),
        (
            {"max_grad_norm": math.nan},
            "max_grad_norm=nan: must be a finite number >= 0",
        ),
        ({"b1": 1.0}, "b1=1.0: must be in [0, 1), as float32 has it"),
        ({"b2": 0.99999999}, "b2=0.99999999: must be in [0, 1), as float32 has it"),
        ({"b2": -0.1}, "b2=-0.1: must be in [0, 1), as float32 has it"),
        ({"b2": math.nan}, "b2=nan: must be in [0, 1), as float32 has it"),
        ({"eps": 0.0}, "eps=0.0: must be a finite number >= 1e-30"),
        ({"name": "sgd", "b2": 0.95}, "b2=0.95: must be 0.999 with name='sgd'"),
        (
            {"name": "sgd", "weight_decay": 0.1},
            "weight_decay=0.1: must be 0.0 with name='sgd'",
        ),
    ],
)
def test_bad_numbers(fields, message):
    with pytest.raises(ConfigError) as caught:
        OptimizerConfig(**fields)
    assert str(caught.value) == message


def test_rounds_of_star_do_not_warm_up():
    with pytest.raises(ConfigError, match=r"optimizer.warmup_steps=2: must be 0 with"):
        replace(STAR, optimizer=OptimizerConfig(warmup_steps=2))


def test_a_stage_warms_up_and_clips(tmp_path):
    """Its first step changes no parameter; what Adam averages is clipped."""
    optimizer = OptimizerConfig(warmup_steps=2, decay_steps=6, max_grad_norm=0.1)
    run = RunConfig(
        stage=replace(PRETRAIN, optimizer=optimizer),
        hypers=Hypers(p_cot=0.5, learning_rate=1e-2),
        num_steps=2,
        log_every=1,
        eval_every=2,
        checkpoint_every=1,
    )
    runs, axes = FrozenDict({"run": run}), FrozenDict({"seed": (0,)})
    run_experiment(tiny_experiment(runs=runs, axes=axes), tmp_path, quiet=True)
    saved = [read(tmp_path / "run", step) for step in range(3)]
    params = [n for n in saved[0] if n.startswith("params.")]
    means = [n for n in saved[0] if ".mu." in n]
    assert len(params) == len(means) == 20
    for n in params:
        np.testing.assert_array_equal(saved[0][n], saved[1][n])
        assert (saved[1][n] != saved[2][n]).any()
    clipped = sum(np.sum(saved[1][n] ** 2) for n in means) ** 0.5 / 0.1
    np.testing.assert_allclose(clipped, 0.1, rtol=1e-4)
    norm = load_metrics(tmp_path / "run", split="train")["grad_norm"]
    assert norm.shape == (1, 2) and (norm > 0.2).all()
