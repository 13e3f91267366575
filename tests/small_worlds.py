"""Worlds small enough to enumerate: tabular models, all prompts, all responses."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from parity_jax.hypers import Hypers
from parity_jax.models import Model
from parity_jax.tasks import Parity
from parity_jax.tasks.parity import EOS, MINUS, PAD, PLUS, SEP
from parity_jax.types import Prompt, StageState

SURE = 1e9  # a logit that leaves no doubt; finite, so that 0 * SURE is 0


class Heads(NamedTuple):
    """Logits of the state of a policy: A, C+, C- and 1 - eps_l of the theory."""

    first: Array | float  # of y_1 = x_1
    gate_right: Array | float = 0.0  # of going on after y_1 = x_1
    gate_wrong: Array | float = -SURE  # of going on after y_1 = -x_1
    chain: Array | float = SURE  # of y_l = y_{l-1} x_l, l = 2 .. d: scalar or d - 1


STOP, RIGHT, WRONG, NO = range(4)  # what a token is; NO never comes
# What each token is where the right bit is MINUS, and where it is PLUS: 2xV.
MEANING = np.full((2, 5), NO)
MEANING[:, EOS] = STOP
MEANING[0, [MINUS, PLUS]] = MEANING[1, [PLUS, MINUS]] = RIGHT, WRONG


def heads_table(params: Heads, d: int) -> Array:
    """Logits of stop, right, wrong and no, (d + 1) x 2 x 4.

    Rows are the number of tokens before, columns whether y_1 was right.
    """
    p, no = Heads(*map(jnp.float32, params)), -SURE
    chain = jnp.broadcast_to(p.chain, (d - 1,))
    right, wrong = jax.nn.log_sigmoid(jnp.stack([chain[0], -chain[0]]))
    gates = (p.gate_wrong, p.gate_right)
    rows = [[[no, p.first, 0.0, no]] * 2]
    rows += [[[0.0, gate + right, gate + wrong, no] for gate in gates]]
    rows += [[[no, logit, 0.0, no]] * 2 for logit in chain[1:]]
    rows += [[[0.0, no, no, no]] * 2]
    return jnp.array(rows)


def make_heads(task: Parity) -> Model:
    """The policy that `Heads` is the table of; hidden states are its logits."""
    d = task.num_bits

    def look_up(params: Heads, place: Any, is_y1_right: Any, is_plus: Array) -> Array:
        rows = heads_table(params, d)[place, is_y1_right.astype(int)]
        return jnp.take_along_axis(rows, jnp.array(MEANING)[is_plus.astype(int)], -1)

    def init(key: Array) -> Heads:
        del key
        return Heads(*(jnp.float32(x) for x in Heads(0.0)))

    def prompt_pass(params: Heads, prompt: Prompt) -> tuple[Array, Array]:
        x_BxL = prompt.token[:, :-1] == PLUS
        start_B = jnp.zeros(len(x_BxL), int)
        logits_BxV = look_up(params, start_B, start_B, x_BxL[:, 0])
        return logits_BxV, x_BxL.astype(jnp.float32)

    def after(params: Heads, token: Array, index_T: Array, context: Array) -> Array:
        """Logits behind the tokens at index_T; the gate is behind y_1 alone."""
        x_BxL, y_BxGxT = context > 0, token == PLUS
        next_x_Bx1xT = x_BxL[:, jnp.minimum(index_T + 1, d - 1)][:, None]
        place_BxGxT = jnp.broadcast_to((index_T + 1)[None, None], token.shape)
        is_y1_right = y_BxGxT == x_BxL[:, :1, None]
        return look_up(params, place_BxGxT, is_y1_right, y_BxGxT == next_x_Bx1xT)

    def response_pass(params: Heads, token: Array, context: Array) -> Array:
        return after(params, token, jnp.arange(token.shape[-1]), context)

    def decode_step(params, token_BxG, index, context, cache):
        logits = after(params, token_BxG[..., None], index[None], context)
        return logits[:, :, 0], cache

    return Model(
        init, prompt_pass, response_pass, lambda *_: (), decode_step, as_they_are
    )


def make_table(task: Parity) -> Model:
    """Logits that know only their position; params is a (L + T) x V table.

    Row i predicts token i + 1 of prompt and response together, so rows before L - 1
    predict prompt tokens, and row L - 1 the first response token.
    """
    last = task.prompt_len - 1
    shape = (task.prompt_len + task.format.max_len, task.vocab_size)

    def prompt_pass(params: Array, prompt: Prompt) -> tuple[Array, tuple]:
        return jnp.broadcast_to(params[last], (len(prompt.token), shape[1])), ()

    def response_pass(params: Array, token: Array, context: tuple) -> Array:
        rows_TxV = params[last + 1 : last + 1 + token.shape[-1]]
        return jnp.broadcast_to(rows_TxV, (*token.shape, shape[1]))

    def decode_step(params, token_BxG, index, context, cache):
        row_V = params[last + 1 + index]
        return jnp.broadcast_to(row_V, (*token_BxG.shape, shape[1])), cache

    def init(key: Array) -> Array:
        return jax.random.normal(key, shape)

    return Model(
        init, prompt_pass, response_pass, lambda *_: (), decode_step, as_they_are
    )


def as_they_are(params: Any, logits: Array) -> Array:
    """The unembedding of a model whose hidden states are its logits."""
    return logits


def no_evaluation(key, params, data):
    return {}


def all_prompts(task: Parity) -> Prompt:
    """Every prompt of the task, 2^d x (d + 1)."""
    bits = itertools.product([PLUS, MINUS], repeat=task.num_bits)
    return Prompt(np.array([(*x, SEP) for x in bits]))


def all_responses(task: Parity) -> tuple[np.ndarray, np.ndarray]:
    """Every response (PAD after EOS) and its mask, each once, N x T."""
    size = task.format.max_len
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


def first_gradient(state: StageState) -> Any:
    """The gradient of the only optimizer step so far: Adam's mean is 0.1 of it."""
    mean = optax.tree_utils.tree_get(state.opt_state, "mu")
    return jax.tree.map(lambda m: m / 0.1, mean)


def num_updates(state: StageState) -> int:
    return int(optax.tree_utils.tree_get(state.opt_state, "count"))


def within_4_sigma(hits, p: float) -> bool:
    """Whether independent hits are as frequent as their probability says."""
    hits = np.asarray(hits)
    return abs(hits.mean() - p) <= 4 * np.sqrt(p * (1 - p) / hits.size)


# Rewards of a user's own, named "small_worlds:..." in a config.


def starts_with_plus(prompt: Prompt, response_BxGxT: Array, data: Any) -> Array:
    return (response_BxGxT[..., 0] == PLUS).astype(jnp.float32)


def always_a_tenth(prompt: Prompt, response_BxGxT: Array, data: Any) -> Array:
    return jnp.full(response_BxGxT.shape[:2], 0.1)


def never(prompt: Prompt, response_BxGxT: Array, data: Any) -> Array:
    return jnp.zeros(response_BxGxT.shape[:2])


def first_five_prompts(prompt: Prompt, response_BxGxT: Array, data: Any) -> Array:
    shape = response_BxGxT.shape[:2]
    return (jax.lax.broadcasted_iota(int, shape, 0) < 5).astype(jnp.float32)


not_a_function = 3
