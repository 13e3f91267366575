"""A task of one's own: say the first bit (short) or all bits (long)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from parity_jax.config import require_positive
from parity_jax.responses import num_tokens, response_mask
from parity_jax.tasks import Solution, TaskConfig
from parity_jax.types import Batch, Prompt, ResponseFormat

PAD, EOS, ZERO = 0, 1, 2  # ZERO + bit is a bit's token


@dataclass(frozen=True)
class CopyConfig(TaskConfig):
    """Copy num_bits bits."""

    num_bits: int = 4

    def __post_init__(self):
        require_positive(self, "num_bits")

    def make(self):
        return Copy(self.num_bits)


class Copy:
    """The task of a `CopyConfig`."""

    vocab_size = 4
    data = ()

    def __init__(self, num_bits):
        self.prompt_len = num_bits
        self.format = ResponseFormat(PAD, (EOS,), max_len=num_bits + 1, short_len=2)
        self.rewards = {"e2e": self.is_right, "cot": self.is_copied}

    def sample_prompts(self, key, num_prompts, data=()):
        shape = (num_prompts, self.prompt_len)
        return Prompt(ZERO + jax.random.bernoulli(key, 0.5, shape).astype(int))

    def demonstrate(self, key, prompt, hypers, data=()):
        short, worked = self.solution(prompt)
        is_long_B = jax.random.bernoulli(key, hypers.p_cot, short.shape[:1])
        response_BxT = jnp.where(is_long_B[:, None], worked[:, 0], short)
        return Batch(prompt, response_BxT, response_mask(response_BxT, self.format))

    def solution(self, prompt, data=()):
        long = jnp.pad(prompt.token, ((0, 0), (0, 1)), constant_values=EOS)
        short = jnp.pad(prompt.token[:, :1], ((0, 0), (0, 1)), constant_values=EOS)
        pad = self.format.max_len - 2
        short = jnp.pad(short, ((0, 0), (0, pad)), constant_values=PAD)
        return Solution(short, long[:, None])

    def is_right(self, prompt, response_BxGxT, data=()):
        right_BxG = response_BxGxT[..., 0] == prompt.token[:, :1]
        return right_BxG.astype(float)

    def is_copied(self, prompt, response_BxGxT, data=()):
        """Every token is that of the worked solution, or of the short one."""
        mask = response_mask(response_BxGxT, self.format)
        token_BxGxT = jnp.where(mask, response_BxGxT, PAD)
        short, worked = self.solution(prompt)
        is_short = (token_BxGxT == short[:, None]).all(-1)
        return (is_short | (token_BxGxT == worked).all(-1)).astype(float)

    def is_long(self, response_BxGxT):
        return num_tokens(response_BxGxT, self.format) > 1

    def diagnostics(self, prompt, response_BxGxT, data=()):
        return {}

    def to_text(self, token_T):
        return "".join("_.01"[token] for token in np.asarray(token_T))

    def from_text(self, text):
        return np.array(["_.01".index(symbol) for symbol in text], np.int32)

    def read_prompt(self, line):
        return self.from_text(line)[: self.prompt_len]
