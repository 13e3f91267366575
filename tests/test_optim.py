"""Updates against the library that is copied most, torch's AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_params, tiny_gpt2, tiny_mistral

from parity_jax.hypers import Hypers
from parity_jax.optim import OptimizerConfig, is_decayed
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
