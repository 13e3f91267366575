"""Worlds small enough to enumerate: tabular models, all prompts, all responses."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from parity_jax.models import Model
from parity_jax.tasks.parity import MINUS, PLUS, SEP, Parity, token_signs
from parity_jax.types import EOS, PAD, Hypers, StageState

SURE = 1e9  # a logit that leaves no doubt; finite, so that 0 * SURE is 0


class Heads(NamedTuple):
    """Logits of the state of a policy: A, C+, C- and 1 - eps_l of the theory."""

    first: Array | float  # of y_1 = x_1
    gate_right: Array | float = 0.0  # of going on after y_1 = x_1
    gate_wrong: Array | float = -SURE  # of going on after y_1 = -x_1
    chain: Array | float = SURE  # of y_l = y_{l-1} x_l, l = 2 .. d: scalar or d - 1


def make_heads(task: Parity) -> Model:
    """The policy that `Heads` is the table of; after d tokens it stops."""
    d = task.num_bits

    def vocabulary(stop: Array, bit: Array) -> Array:
        """Log-probabilities: EOS by logit `stop`, otherwise PLUS by logit `bit`."""
        go = jax.nn.log_sigmoid(-stop)
        never = jnp.full_like(bit, -SURE)
        plus = go + jax.nn.log_sigmoid(bit)
        minus = go + jax.nn.log_sigmoid(-bit)
        token = {EOS: jax.nn.log_sigmoid(stop), PLUS: plus, MINUS: minus}
        return jnp.stack([token.get(v, never) for v in range(task.vocab_size)], -1)

    def init(key: Array) -> Heads:
        del key
        return Heads(*(jnp.float32(x) for x in Heads(0.0)))

    def prompt_pass(params: Heads, prompt_BxL: Array) -> tuple[Array, Array]:
        x_BxL = token_signs(prompt_BxL[:, :-1]).astype(jnp.float32)
        bit_B = params.first * x_BxL[:, 0]
        return vocabulary(jnp.full_like(bit_B, -SURE), bit_B), x_BxL

    def after(params: Heads, token: Array, position_T: Array, x_BxL: Array) -> Array:
        y_BxGxT = token_signs(token)
        x_BxL = jnp.pad(x_BxL, ((0, 0), (0, 1)))
        bit = jnp.broadcast_to(params.chain, (d - 1,))[jnp.minimum(position_T, d - 2)]
        next_x_BxT = x_BxL[:, jnp.minimum(position_T + 1, d)]
        bit_BxGxT = y_BxGxT * next_x_BxT[:, None] * bit[None, None]
        is_right_BxGxT = y_BxGxT == x_BxL[:, :1, None]
        gate_BxGxT = jnp.where(is_right_BxGxT, params.gate_right, params.gate_wrong)
        later_T = jnp.where(position_T < d - 1, -SURE, SURE)
        stop = jnp.where((position_T == 0)[None, None], -gate_BxGxT, later_T)
        return vocabulary(stop, bit_BxGxT)

    def response_pass(params: Heads, token: Array, x_BxL: Array) -> Array:
        return after(params, token, jnp.arange(token.shape[-1]), x_BxL)

    def decode_step(params, token_BxG, index, x_BxL, cache):
        logits = after(params, token_BxG[..., None], index[None], x_BxL)
        return logits[:, :, 0], cache

    return Model(init, prompt_pass, response_pass, lambda *_: (), decode_step)


def make_table(task: Parity) -> Model:
    """Logits that know only their position; params is a (L + T) x V table.

    Row i predicts token i + 1 of prompt and response together, so rows before L - 1
    predict prompt tokens, and row L - 1 the first response token.
    """
    last, shape = task.prompt_len - 1, (task.prompt_len + task.response_len, 5)

    def prompt_pass(params: Array, prompt_BxL: Array) -> tuple[Array, Array]:
        batch_size = prompt_BxL.shape[0]
        return jnp.broadcast_to(params[last], (batch_size, 5)), ()

    def response_pass(params: Array, token: Array, context: tuple) -> Array:
        rows_TxV = params[last + 1 : last + 1 + token.shape[-1]]
        return jnp.broadcast_to(rows_TxV, (*token.shape, 5))

    def decode_step(params, token_BxG, index, context, cache):
        return jnp.broadcast_to(params[last + 1 + index], (*token_BxG.shape, 5)), cache

    def init(key: Array) -> Array:
        return jax.random.normal(key, shape)

    return Model(init, prompt_pass, response_pass, lambda *_: (), decode_step)


def no_evaluation(key, params):
    return {}


def all_prompts(task: Parity) -> np.ndarray:
    """Every prompt of the task, 2^d x (d + 1)."""
    bits = itertools.product([PLUS, MINUS], repeat=task.num_bits)
    return np.array([(*x, SEP) for x in bits])


def all_responses(task: Parity) -> tuple[np.ndarray, np.ndarray]:
    """Every response (PAD after EOS) and its mask, each once, N x T."""
    size = task.response_len
    going_on = [v for v in range(task.vocab_size) if v != EOS]
    rows = list(itertools.product(going_on, repeat=size))
    for n in range(size):
        tail = (EOS, *[PAD] * (size - n - 1))
        rows += [(*head, *tail) for head in itertools.product(going_on, repeat=n)]
    token = np.array(rows)
    ends = np.cumsum(token == EOS, 1) - (token == EOS)  # EOS seen before this token
    return token, ends == 0


def replicate(hypers: Hypers, num: int) -> Hypers:
    """Hypers of `num` equal members."""
    return jax.tree.map(lambda x: jnp.full(num, x, jnp.float32), hypers)


def first_gradient(state: StageState) -> Array:
    """The gradient of the only optimizer step so far: Adam's mean is 0.1 of it."""
    mean = optax.tree_utils.tree_get(state.opt_state, "mu")
    return jax.tree.map(lambda m: m / 0.1, mean)


def num_updates(state: StageState) -> int:
    return int(optax.tree_utils.tree_get(state.opt_state, "count"))


# Rewards of a user's own, named "small_worlds:..." in a config.


def starts_with_plus(prompt_BxL: Array, response_BxGxT: Array) -> Array:
    return (response_BxGxT[..., 0] == PLUS).astype(jnp.float32)


def always_a_tenth(prompt_BxL: Array, response_BxGxT: Array) -> Array:
    return jnp.full(response_BxGxT.shape[:2], 0.1)


def never(prompt_BxL: Array, response_BxGxT: Array) -> Array:
    return jnp.zeros(response_BxGxT.shape[:2])


def first_five_prompts(prompt_BxL: Array, response_BxGxT: Array) -> Array:
    shape = response_BxGxT.shape[:2]
    return (jax.lax.broadcasted_iota(int, shape, 0) < 5).astype(jnp.float32)


not_a_function = 3
