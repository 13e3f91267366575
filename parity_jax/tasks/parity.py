"""Parity of d bits with long and short demonstrations (paper section 3).

Prompt: x_1 .. x_d in {-1, +1} and a separator. Running parities t_l = x_1 * ... * x_l.
    long   t_1, t_2, .., t_d, EOS        with probability p_cot
    leap   t_k, t_2k, .., t_d, EOS       with probability p_leap
    short  t_d, EOS                      otherwise
A response does not announce its kind: that shows only in its second token.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from parity_jax.config import ParityConfig
from parity_jax.masked import has_ended, num_tokens
from parity_jax.types import EOS, PAD, Batch, Diagnostics, Hypers, Key, Reward

SEP, PLUS, MINUS = 2, 3, 4
SYMBOLS = np.array(["_", ".", "=", "+", "-"])  # text of PAD, EOS, SEP, PLUS, MINUS


def sign_tokens(sign: Array) -> Array:
    """Token of each sign: PLUS for +1, MINUS for -1."""
    return jnp.where(sign > 0, PLUS, MINUS)


def token_signs(token: Array) -> Array:
    """Sign of each token: +1 or -1, and 0 for a token that is no bit."""
    return (token == PLUS).astype(jnp.int32) - (token == MINUS).astype(jnp.int32)


class Parity:
    """The parity task of a `ParityConfig`; implements `tasks.Task`."""

    vocab_size = len(SYMBOLS)
    short_len = 2

    def __init__(self, cfg: ParityConfig):
        d, k = cfg.num_bits, cfg.leap
        self.num_bits = d
        self.prompt_len = d + 1
        self.response_len = d + 1
        self.rewards: dict[str, Reward] = {
            "e2e": self.reward_e2e,
            "cot": self.reward_cot,
        }
        # Positions (from 0) of the running parities that a leap chain shows.
        self.leap_positions = np.append(np.arange(k - 1, d - 1, k), d - 1)

    def sample_prompts(self, key: Key, num_prompts: int) -> Array:
        """Uniform bits and the separator, prompt_BxL with L = d + 1."""
        sign_BxL = jax.random.rademacher(key, (num_prompts, self.num_bits))
        return jnp.pad(sign_tokens(sign_BxL), ((0, 0), (0, 1)), constant_values=SEP)

    def demonstrate(self, key: Key, prompt_BxL: Array, hypers: Hypers) -> Batch:
        """One demonstration of each prompt, longest first.

        The kinds are drawn independently and then sorted, which changes nothing in
        distribution because prompts are independent and identically distributed.
        Noise flips intermediate tokens of long and leap chains: `emit_noise` flips the
        token that is shown, `step_noise` the running parity from there on;
        `short_noise` flips the short answer.
        """
        k_kind, k_chain, k_leap, k_short = jax.random.split(key, 4)
        batch_size = prompt_BxL.shape[0]
        parity_BxL = self.running_parity(prompt_BxL)
        u_B = jnp.sort(jax.random.uniform(k_kind, (batch_size,)))
        is_chain_B = u_B < hypers.p_cot
        is_leap_B = u_B < hypers.p_cot + hypers.p_leap

        chain = self._finish(_flip_chain(k_chain, parity_BxL, hypers))
        leap_BxM = parity_BxL[:, self.leap_positions]
        leap = self._finish(_flip_chain(k_leap, leap_BxM, hypers))
        flip_B = jax.random.bernoulli(k_short, hypers.short_noise, (batch_size,))
        answer_B = parity_BxL[:, -1] * jnp.where(flip_B, -1, 1)
        short = self._finish(answer_B[:, None])

        response_BxT = jnp.where(is_leap_B[:, None], leap, short)
        response_BxT = jnp.where(is_chain_B[:, None], chain, response_BxT)
        return Batch(prompt_BxL, response_BxT, response_BxT != PAD)

    def reward_e2e(self, prompt_BxL: Array, response_BxGxT: Array) -> Array:
        """1 where the response has ended and its last token is the parity, BxG."""
        length_BxG = num_tokens(response_BxGxT)
        last_BxGx1 = jnp.maximum(length_BxG - 1, 0)[..., None]
        last_BxG = jnp.take_along_axis(response_BxGxT, last_BxGx1, -1)[..., 0]
        parity_Bx1 = self.running_parity(prompt_BxL)[:, -1:]
        right_BxG = token_signs(last_BxG) == parity_Bx1
        return (has_ended(response_BxGxT) & right_BxG).astype(jnp.float32)

    def reward_cot(self, prompt_BxL: Array, response_BxGxT: Array) -> Array:
        """1 where the response is exactly the full chain or the short answer, BxG."""
        parity_BxL = self.running_parity(prompt_BxL)
        chain = self._finish(parity_BxL)[:, None]
        short = self._finish(parity_BxL[:, -1:])[:, None]
        equals_chain = (response_BxGxT == chain).all(-1)
        return (equals_chain | (response_BxGxT == short).all(-1)).astype(jnp.float32)

    def is_long(self, response_BxGxT: Array) -> Array:
        """Whether the response goes on after its first token, BxG."""
        return (response_BxGxT[..., 0] != EOS) & (response_BxGxT[..., 1] != EOS)

    def diagnostics(self, prompt_BxL: Array, response_BxGxT: Array) -> Diagnostics:
        """None beyond what evaluation measures of every task."""
        return {}

    def running_parity(self, prompt_BxL: Array) -> Array:
        """t_1 .. t_d in {-1, +1}, B x d."""
        return jnp.cumprod(token_signs(prompt_BxL[:, : self.num_bits]), 1)

    def to_text(self, token_T: Array | np.ndarray) -> str:
        return "".join(SYMBOLS[np.asarray(token_T)])

    def from_text(self, text: str) -> Array:
        token = {symbol: i for i, symbol in enumerate(SYMBOLS)}
        unknown = set(text) - set(token)
        if unknown:
            raise ValueError(f"text={text!r}: symbols must be among {''.join(SYMBOLS)}")
        return jnp.array([token[symbol] for symbol in text])

    def read_prompt(self, line: str) -> Array:
        token = self.from_text(line)[: self.prompt_len]
        d = self.num_bits
        if len(token) <= d or (token[:d] < PLUS).any() or token[d] != SEP:
            raise ValueError(f"must begin with {d} bits and '=', as in '+-='")
        return token

    def _finish(self, sign_BxM: Array) -> Array:
        """Signs as tokens with EOS behind, padded to response_BxT."""
        token = jnp.pad(sign_tokens(sign_BxM), ((0, 0), (0, 1)), constant_values=EOS)
        pad = self.response_len - token.shape[1]
        return jnp.pad(token, ((0, 0), (0, pad)), constant_values=PAD)


def _flip_chain(key: Key, sign_BxM: Array, hypers: Hypers) -> Array:
    """Flip intermediate tokens of a chain; its last step is always a clean one."""
    k_emit, k_step = jax.random.split(key)
    shape = (sign_BxM.shape[0], sign_BxM.shape[1] - 1)

    def flips(key: Key, probability: Array) -> Array:
        flip = jnp.where(jax.random.bernoulli(key, probability, shape), -1, 1)
        return jnp.pad(flip, ((0, 0), (0, 1)), constant_values=1)

    propagated = jnp.cumprod(flips(k_step, hypers.step_noise), 1)
    return sign_BxM * propagated * flips(k_emit, hypers.emit_noise)
