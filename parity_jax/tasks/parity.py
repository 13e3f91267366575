"""Parity of d bits with long and short demonstrations (paper section 3).

Prompt: x_1 .. x_d in {-1, +1} and a separator. Running parities t_l = x_1 * ... * x_l.
    long   t_1, t_2, .., t_d, EOS        with probability p_cot
    leap   t_k, t_2k, .., t_d, EOS       with probability p_leap
    short  t_d, EOS                      otherwise
A response does not announce its kind: that shows only in its second token.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from parity_jax.config import require
from parity_jax.hypers import Hypers
from parity_jax.responses import has_ended, num_tokens, response_mask
from parity_jax.tasks.task import Diagnostics, Reward, Solution, TaskConfig, texts_of
from parity_jax.types import Batch, Key, Prompt, ResponseFormat

PAD, EOS, SEP, PLUS, MINUS = range(5)
MAX_BITS = 65_536  # positions of a prompt that a program can be compiled for
SYMBOLS = np.array(["_", ".", "=", "+", "-"])  # text of PAD, EOS, SEP, PLUS, MINUS


def sign_tokens(sign: Array) -> Array:
    """Token of each sign: PLUS for +1, MINUS for -1."""
    return jnp.where(sign > 0, PLUS, MINUS)


def token_signs(token: Array) -> Array:
    """Sign of each token: +1 or -1, and 0 for a token that is no bit."""
    return (token == PLUS).astype(jnp.int32) - (token == MINUS).astype(jnp.int32)


@dataclass(frozen=True)
class ParityConfig(TaskConfig):
    """Parity of num_bits bits."""

    kind: ClassVar[str] = "parity"
    num_bits: int = 16  # d
    leap: int = 1  # k: a leap chain shows every k-th running parity, and the last

    def __post_init__(self) -> None:
        inside = 2 <= self.num_bits <= MAX_BITS
        require(inside, "num_bits", self.num_bits, f"must be in [2, {MAX_BITS}]")
        inside = 1 <= self.leap <= self.num_bits
        require(inside, "leap", self.leap, f"must be in [1, {self.num_bits}]")

    def check(self, hypers: Hypers) -> None:
        allowed = f"must be 0 with leap=num_bits={self.num_bits}: a leap is an answer"
        is_chain = self.leap < self.num_bits
        require(is_chain or hypers.p_leap == 0, "p_leap", hypers.p_leap, allowed)
        is_another = self.leap > 1 or hypers.p_leap == 0  # or p_cot + p_leap counts
        allowed = (
            "must be 0 with leap=1: a leap chain is the full chain, which is p_cot's"
        )
        require(is_another, "p_leap", hypers.p_leap, allowed)

    def make(self) -> "Parity":
        return Parity(self.num_bits, self.leap)


class Parity:
    """The parity of d bits; leap chains show every k-th running parity."""

    vocab_size = len(SYMBOLS)
    data = ()

    def __init__(self, d: int, k: int = 1):
        self.num_bits, self.leap = d, k
        self.prompt_len = d + 1
        self.format = ResponseFormat(PAD, (EOS,), max_len=d + 1, short_len=2)
        self.rewards: dict[str, Reward] = {
            "e2e": self.reward_e2e,
            "cot": self.reward_cot,
        }
        # Positions (from 0) of the running parities that a leap chain shows.
        self.leap_positions = np.append(np.arange(k - 1, d - 1, k), d - 1)

    def sample_prompts(self, key: Key, num_prompts: int, data: Any = ()) -> Prompt:
        """Uniform bits and the separator, L = d + 1."""
        sign_BxL = jax.random.rademacher(key, (num_prompts, self.num_bits))
        token = jnp.pad(sign_tokens(sign_BxL), ((0, 0), (0, 1)), constant_values=SEP)
        return Prompt(token)

    def demonstrate(
        self, key: Key, prompt: Prompt, hypers: Hypers, data: Any = ()
    ) -> Batch:
        """One demonstration of each prompt from the mixture.

        The kinds are drawn independently and then sorted, which changes nothing in
        distribution because prompts are independent and identically distributed.
        Noise flips intermediate tokens of long and leap chains: `emit_noise` flips the
        token that is shown, `step_noise` the running parity from there on;
        `short_noise` flips the short answer.
        """
        k_kind, k_chain, k_leap, k_short = jax.random.split(key, 4)
        parity_BxL = self.running_parity(prompt)
        batch_size = parity_BxL.shape[0]
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
        return Batch(prompt, response_BxT, response_mask(response_BxT, self.format))

    def solution(self, prompt: Prompt, data: Any = ()) -> Solution:
        """The parity alone; the full chain and, if leap > 1, the leap chain."""
        parity_BxL = self.running_parity(prompt)
        worked = [self._finish(parity_BxL)]
        if self.leap > 1:
            worked.append(self._finish(parity_BxL[:, self.leap_positions]))
        return Solution(self._finish(parity_BxL[:, -1:]), jnp.stack(worked, 1))

    def reward_e2e(
        self, prompt: Prompt, response_BxGxT: Array, data: Any = ()
    ) -> Array:
        """1 where the response has ended and its last token is the parity, BxG."""
        length_BxG = num_tokens(response_BxGxT, self.format)
        last_BxGx1 = jnp.maximum(length_BxG - 1, 0)[..., None]
        last_BxG = jnp.take_along_axis(response_BxGxT, last_BxGx1, -1)[..., 0]
        parity_Bx1 = self.running_parity(prompt)[:, -1:]
        right_BxG = token_signs(last_BxG) == parity_Bx1
        ended_BxG = has_ended(response_BxGxT, self.format)
        return (ended_BxG & right_BxG).astype(jnp.float32)

    def reward_cot(
        self, prompt: Prompt, response_BxGxT: Array, data: Any = ()
    ) -> Array:
        """1 where it is a whole chain or the short answer, token by token, BxG."""
        short, worked = self.solution(prompt)
        equals_BxGxM = (response_BxGxT[:, :, None] == worked[:, None]).all(-1)
        equals_short_BxG = (response_BxGxT == short[:, None]).all(-1)
        return (equals_BxGxM.any(-1) | equals_short_BxG).astype(jnp.float32)

    def is_long(self, response_BxGxT: Array) -> Array:
        """Whether the response goes on after its first token, BxG."""
        return (response_BxGxT[..., 0] != EOS) & (response_BxGxT[..., 1] != EOS)

    def diagnostics(
        self, prompt: Prompt, response_BxGxT: Array, data: Any = ()
    ) -> Diagnostics:
        """eps_2, error rate of the chain's second step after a right first one.

        Not beside leap chains, whose first token is that of the full chain by chance.
        """
        if self.leap > 1:
            return {}
        sign_BxGxT = token_signs(response_BxGxT)
        sign_Bx1xL = token_signs(prompt.token)[:, None]
        first_BxG, second_BxG = sign_BxGxT[..., 0], sign_BxGxT[..., 1]
        is_begun_BxG = first_BxG == sign_Bx1xL[..., 0]
        is_wrong_BxG = second_BxG != first_BxG * sign_Bx1xL[..., 1]
        return {"eps_2": (is_wrong_BxG, is_begun_BxG & self.is_long(response_BxGxT))}

    def running_parity(self, prompt: Prompt) -> Array:
        """t_1 .. t_d in {-1, +1}, B x d."""
        return jnp.cumprod(token_signs(prompt.token[:, : self.num_bits]), 1)

    def to_text(self, token_T: Array | np.ndarray) -> str:
        return "".join(texts_of(SYMBOLS, token_T))

    def from_text(self, text: str) -> np.ndarray:
        token = {symbol: i for i, symbol in enumerate(SYMBOLS)}
        unknown = sorted(set(text) - set(token))
        if unknown:
            allowed = f"symbols must be among {''.join(SYMBOLS)}"
            raise ValueError(f"symbol {unknown[0]!r}: {allowed}")
        return np.array([token[symbol] for symbol in text], np.int32)

    def read_prompt(self, line: str) -> np.ndarray:
        """The prompt that a line begins with; one of bits alone needs no "="."""
        whole = line if "=" in line else line + "="
        token, d = self.from_text(whole)[: self.prompt_len], self.num_bits
        if len(token) <= d or (token[:d] < PLUS).any() or token[d] != SEP:
            raise ValueError(f"must begin with {d} bits, as in '{('+-' * d)[:d]}'")
        return token

    def _finish(self, sign_BxM: Array) -> Array:
        """Signs as tokens with EOS behind, padded to response_BxT."""
        token = jnp.pad(sign_tokens(sign_BxM), ((0, 0), (0, 1)), constant_values=EOS)
        pad = self.format.max_len - token.shape[1]
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
