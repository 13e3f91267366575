"""The paper's autoregressive linear model: one linear predictor per response position.

With bits x in {-1,+1}^d and response y (section 6 of the paper; l counts from 1):
    first   P(y_1 = +1)       = sg(<w_1, x>)
    gate    P(go on | y_1)    = sg(<w_2a, [1, x, y_1, y_1 x]>)
    chain   P(y_l = +1 | ..)  = sg(<w_l, [x, y_1 .. y_{l-1}, y_{l-1} x]>), l = 2 .. d
and EOS after d tokens. A positive gate logit means "go on" (the paper's label is EOS).
Weights of chain heads for y_l and later have no effect and stay 0.

Gate and second bit share one response position, so the vocabulary logits there are
the log-probabilities log(1-C), log C + log sg(+-z): at temperature 1 sampling is the
paper's exactly. At another temperature softmax(logits / tau) tempers the three outcomes
jointly, as for any language model. Compared with tempering gate and bit one after the
other, the odds of going on gain the factor (1-eps_2)^(1/tau) + eps_2^(1/tau), eps_2 the
error rate of the second bit, and greedy decoding goes on iff C max P(y_2) > 1 - C. Both
differences vanish with eps_2; `greedy_signs` decides stage by stage, as the paper does.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.config import ConfigError, kind_of, require
from parity_jax.models.model import Model, ModelConfig
from parity_jax.tasks.parity import EOS, MINUS, PLUS, ParityConfig, token_signs
from parity_jax.tasks.task import Task, TaskConfig
from parity_jax.types import Key, Prompt

NEVER = -1e9  # logit of a token that cannot come; finite, so that 0 * NEVER is 0


@dataclass(frozen=True)
class LinearConfig(ModelConfig):
    """The chain of linear predictors of the paper's theory; it has no sizes."""

    kind: ClassVar[str] = "linear"

    def make(self, task: Task) -> Model:
        return make_linear(task)

    def check(self, task: TaskConfig) -> None:
        """Its responses stop at bit 1 or d."""
        if not isinstance(task, ParityConfig):
            allowed = "must be 'parity' with the linear model"
            raise ConfigError("task.kind", kind_of(type(task)), allowed)
        allowed = "must be 1 with the linear model: it stops after bit 1 or bit d"
        require(task.leap == 1, "task.leap", task.leap, allowed)


class LinearParams(NamedTuple):
    """Weights of all heads, in the order of the features above."""

    first: Array  # d
    gate: Array  # 2d + 2
    chain: Array  # (d - 1) x (3d - 1): rows l = 2 .. d, columns x, y_1 .. y_{d-1}, y x


class HeadTerms(NamedTuple):
    """What later heads make of the prompt: logit_l = base_l + y_{l-1} flip_l + ..."""

    gate_base: Array  # B
    gate_flip: Array  # B
    chain_base: Array  # B x (d - 1)
    chain_flip: Array  # B x (d - 1)


def zero_params(num_bits: int) -> LinearParams:
    """All weights 0, where training starts."""
    d = num_bits
    return LinearParams(
        jnp.zeros(d), jnp.zeros(2 * d + 2), jnp.zeros((d - 1, 3 * d - 1))
    )


def prompt_signs(prompt: Prompt) -> Array:
    """The bits of a prompt (without its separator) as floats in {-1, +1}, B x d."""
    return token_signs(prompt.token[:, :-1]).astype(jnp.float32)


def first_logit(params: LinearParams, x_BxL: Array) -> Array:
    """Logit of y_1 = +1, B."""
    return x_BxL @ params.first


def head_terms(params: LinearParams, x_BxL: Array) -> HeadTerms:
    """Everything that does not depend on the response; computed once per prompt."""
    d = x_BxL.shape[-1]
    bias, by_x, by_y, by_yx = jnp.split(params.gate, [1, d + 1, d + 2])
    chain_x, _, chain_yx = jnp.split(params.chain, [d, 2 * d - 1], axis=1)
    return HeadTerms(
        gate_base=bias + x_BxL @ by_x,
        gate_flip=by_y + x_BxL @ by_yx,
        chain_base=x_BxL @ chain_x.T,
        chain_flip=x_BxL @ chain_yx.T,
    )


def gate_logit(terms: HeadTerms, y_BxG: Array) -> Array:
    """Logit of going on after the first bit y_1, BxG."""
    return terms.gate_base[:, None] + y_BxG * terms.gate_flip[:, None]


def earlier_weights(params: LinearParams) -> Array:
    """Weights of y_1 .. y_{l-1} in head l (row l - 2); those of later bits are 0."""
    d = params.first.shape[-1]
    return jnp.tril(params.chain[:, d : 2 * d - 1])


def chain_logits(params: LinearParams, terms: HeadTerms, y_BxGxT: Array) -> Array:
    """Logits of y_2 = +1 .. y_{T+1} = +1 given y_1 .. y_T with T <= d - 1, BxGxT."""
    num = y_BxGxT.shape[-1]
    weights_TxT = earlier_weights(params)[:num, :num]
    base, flip = terms.chain_base[:, None, :num], terms.chain_flip[:, None, :num]
    return base + y_BxGxT * flip + y_BxGxT @ weights_TxT.T


def stop_logit(index: Array, stop_after_first: Array, num_bits: int) -> Array:
    """Logit of EOS after the bit at `index` (from 0): certain after the last one."""
    later = jnp.where(index < num_bits - 1, NEVER, -NEVER)
    return jnp.where(index == 0, stop_after_first, later)


def vocabulary_logits(stop: Array, bit: Array) -> Array:
    """Log-probabilities, V behind: EOS by logit `stop`, else PLUS by logit `bit`."""
    go = jax.nn.log_sigmoid(-stop)
    never = jnp.full_like(bit, NEVER)
    by_token = {
        EOS: jax.nn.log_sigmoid(stop),
        PLUS: go + jax.nn.log_sigmoid(bit),
        MINUS: go + jax.nn.log_sigmoid(-bit),
    }
    vocab_size = MINUS + 1
    return jnp.stack([by_token.get(v, never) for v in range(vocab_size)], -1)


def make_linear(task: Task) -> Model:
    """The linear model of the parity task; initial weights are 0.

    Its hidden states are the vocabulary logits themselves.
    """
    d = task.prompt_len - 1

    def init(key: Key) -> LinearParams:
        del key
        return zero_params(d)

    def prompt_pass(params: LinearParams, prompt: Prompt) -> tuple[Array, HeadTerms]:
        x_BxL = prompt_signs(prompt)
        bit_B = first_logit(params, x_BxL)
        logits_BxV = vocabulary_logits(jnp.full_like(bit_B, NEVER), bit_B)
        return logits_BxV, head_terms(params, x_BxL)

    def response_pass(
        params: LinearParams, token_BxGxT: Array, terms: HeadTerms
    ) -> Array:
        y_BxGxT = token_signs(token_BxGxT).astype(jnp.float32)
        bit_BxGxT = chain_logits(params, terms, y_BxGxT[..., : d - 1])
        pad = y_BxGxT.shape[-1] - bit_BxGxT.shape[-1]  # nothing follows bit d
        bit_BxGxT = jnp.pad(bit_BxGxT, ((0, 0), (0, 0), (0, pad)))
        position_1x1xT = jnp.arange(y_BxGxT.shape[-1])[None, None]
        stop_BxGx1 = -gate_logit(terms, y_BxGxT[..., 0])[..., None]
        stop_BxGxT = stop_logit(position_1x1xT, stop_BxGx1, d)
        return vocabulary_logits(stop_BxGxT, bit_BxGxT)

    def empty_cache(terms: HeadTerms, num_generations: int, response_len: int) -> Array:
        """The signs of the earlier tokens, NxT; 0 where there is none yet."""
        return jnp.zeros((terms.gate_base.shape[0] * num_generations, response_len))

    def decode_step(
        params: LinearParams,
        token_BxG: Array,
        index: Array,
        terms: HeadTerms,
        cache_NxT: Array,
    ) -> tuple[Array, Array]:
        y_BxG = token_signs(token_BxG).astype(jnp.float32)
        cache_NxT = cache_NxT.at[:, index].set(y_BxG.ravel())
        head = jnp.minimum(index, d - 2)
        base, flip = terms.chain_base[:, head, None], terms.chain_flip[:, head, None]
        num = min(cache_NxT.shape[-1], d - 1)
        earlier_N = cache_NxT[:, :num] @ earlier_weights(params)[head, :num]
        bit_BxG = base + y_BxG * flip + earlier_N.reshape(y_BxG.shape)
        stop_BxG = stop_logit(index, -gate_logit(terms, y_BxG), d)
        return vocabulary_logits(stop_BxG, bit_BxG), cache_NxT

    def unembed(params: LinearParams, logits: Array) -> Array:
        return logits

    return Model(init, prompt_pass, response_pass, empty_cache, decode_step, unembed)


class ExactPolicy(NamedTuple):
    """Probabilities of the heads along the right answers of each prompt."""

    first: Array  # B, P(y_1 = x_1)
    gate_right: Array  # B, P(go on | y_1 = x_1)
    gate_wrong: Array  # B, P(go on | y_1 = -x_1)
    chain_error: Array  # B x (d - 1), P(y_l != y_{l-1} x_l) on the right chain, l >= 2
    long: Array  # B, P(full right chain)
    short: Array  # B, P(parity, then EOS)
    gate_margin: Array  # B, the gate's logit at y_1 = x_1


def exact_policy(params: LinearParams, x_BxL: Array) -> ExactPolicy:
    """Nothing is sampled: the paper's Theorem 1 and Propositions 1-3 speak of these."""
    terms = head_terms(params, x_BxL)
    parity_BxT = jnp.cumprod(x_BxL, -1)
    logit_B = first_logit(params, x_BxL)
    first_B = jax.nn.sigmoid(x_BxL[:, 0] * logit_B)
    right_Bx1 = x_BxL[:, :1]
    gate_Bx2 = gate_logit(terms, jnp.concatenate([right_Bx1, -right_Bx1], 1))
    bit_BxT = chain_logits(params, terms, parity_BxT[:, None, :-1])[:, 0]
    margin_BxT = bit_BxT * parity_BxT[:, 1:]
    log_chain_B = jax.nn.log_sigmoid(margin_BxT).sum(-1)
    answer_B = parity_BxT[:, -1]
    stop_B = -gate_logit(terms, answer_B[:, None])[:, 0]
    return ExactPolicy(
        first=first_B,
        gate_right=jax.nn.sigmoid(gate_Bx2[:, 0]),
        gate_wrong=jax.nn.sigmoid(gate_Bx2[:, 1]),
        chain_error=jax.nn.sigmoid(-margin_BxT),
        long=first_B * jax.nn.sigmoid(gate_Bx2[:, 0]) * jnp.exp(log_chain_B),
        short=jax.nn.sigmoid(answer_B * logit_B) * jax.nn.sigmoid(stop_B),
        gate_margin=gate_Bx2[:, 0],
    )


def greedy_signs(params: LinearParams, x_BxL: Array) -> tuple[Array, Array]:
    """Greedy decoding by signs: whether it goes on, and whether as the right chain."""
    terms = head_terms(params, x_BxL)
    parity_BxT = jnp.cumprod(x_BxL, -1)
    y_Bx1 = jnp.sign(first_logit(params, x_BxL))[:, None]
    is_long_B = gate_logit(terms, y_Bx1)[:, 0] > 0
    # A greedy chain is right iff every step is right after a right prefix.
    bit_BxT = chain_logits(params, terms, parity_BxT[:, None, :-1])[:, 0]
    steps_right_B = (bit_BxT * parity_BxT[:, 1:] > 0).all(-1)
    return is_long_B, is_long_B & (y_Bx1[:, 0] == x_BxL[:, 0]) & steps_right_B
