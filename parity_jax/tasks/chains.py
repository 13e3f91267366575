"""Parity with several kinds of chains in one mixture, announced by nothing.

    full       t_1, t_2, .., t_d                 leap2, leap4   t_k, t_2k, .., t_d
    shuffled   running parities in a random order of the bits
    repeated   t_1, t_1, t_2, t_2, .., t_d, t_d

A demonstration is long with probability p_cot, of a kind drawn by the weights.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from parity_jax.config import require
from parity_jax.hypers import Hypers
from parity_jax.responses import num_tokens, response_mask
from parity_jax.tasks.parity import EOS, MAX_BITS, PAD, Parity, token_signs
from parity_jax.tasks.task import Diagnostics, Solution, TaskConfig, num_same
from parity_jax.types import Batch, Key, Prompt, ResponseFormat

Chain = Literal["full", "leap2", "leap4", "shuffled", "repeated"]
LEAPS = {"full": 1, "leap2": 2, "leap4": 4}  # every how many running parities are shown


@dataclass(frozen=True)
class ChainsConfig(TaskConfig):
    """Parity of num_bits bits, with these kinds of chains."""

    kind: ClassVar[str] = "chains"
    num_bits: int = 8  # d
    chains: tuple[Chain, ...] = ("full", "leap2")
    weights: tuple[float, ...] = (1.0, 1.0)  # of the kinds; their sum does not matter

    def __post_init__(self) -> None:
        inside = 2 <= self.num_bits <= MAX_BITS
        require(inside, "num_bits", self.num_bits, f"must be in [2, {MAX_BITS}]")
        require(bool(self.chains), "chains", (), "must name at least one kind")
        matches = len(self.weights) == len(self.chains)
        allowed = f"must give one weight for each of chains={self.chains}"
        require(matches, "weights", self.weights, allowed)
        for weight in self.weights:
            inside = 0 < weight < np.inf
            require(inside, "weights", weight, "must be positive and finite")
        total = sum(self.weights)
        require(total < np.inf, "weights", self.weights, "must have a finite sum")
        lengths = {chain_len(chain, self.num_bits) for chain in self.chains}
        allowed = "must be of different lengths, by which they are told apart"
        require(len(lengths) == len(self.chains), "chains", self.chains, allowed)
        allowed = f"must be longer than 1 at num_bits={self.num_bits}, as answers are"
        require(min(lengths) > 1, "chains", self.chains, allowed)

    def check(self, hypers: Hypers) -> None:
        for name in ("p_leap", "emit_noise", "step_noise", "short_noise"):
            value = getattr(hypers, name)
            require(value == 0, name, value, "must be 0 with the task 'chains'")

    def make(self) -> "Chains":
        return Chains(self.num_bits, self.chains, self.weights)


def chain_len(chain: str, num_bits: int) -> int:
    """Tokens of a chain before its end."""
    if chain == "repeated":
        return 2 * num_bits
    return -(-num_bits // LEAPS.get(chain, 1))


class Chains(Parity):
    """The parity of d bits, worked out in one of several ways."""

    def __init__(self, d: int, chains: tuple[str, ...], weights: tuple[float, ...]):
        super().__init__(d)
        self.lengths = {chain: chain_len(chain, d) for chain in chains}
        self.share_1xK = (np.cumsum(weights) / np.sum(weights))[None]
        max_len = max(d, *self.lengths.values()) + 1
        self.format = ResponseFormat(
            self.format.pad_id, self.format.end_ids, max_len, short_len=2
        )

    def demonstrate(
        self, key: Key, prompt: Prompt, hypers: Hypers, data: Any = ()
    ) -> Batch:
        """One demonstration of each prompt; kinds are drawn, then sorted (`Parity`)."""
        k_kind, k_order = jax.random.split(key)
        short_BxT = self.solution(prompt).short
        u_B = jnp.sort(jax.random.uniform(k_kind, short_BxT.shape[:1]))
        shown = [self._shown(k_order, prompt, chain) for chain in self.lengths]
        chain_BxKxT = jnp.stack(shown, 1)
        is_before_BxK = u_B[:, None] >= hypers.p_cot * self.share_1xK
        kind_B = jnp.minimum(is_before_BxK.sum(1), len(self.lengths) - 1)
        chain_BxT = jnp.take_along_axis(chain_BxKxT, kind_B[:, None, None], 1)[:, 0]
        is_long_Bx1 = u_B[:, None] < hypers.p_cot
        response_BxT = jnp.where(is_long_Bx1, chain_BxT, short_BxT)
        return Batch(prompt, response_BxT, response_mask(response_BxT, self.format))

    def solution(self, prompt: Prompt, data: Any = ()) -> Solution:
        """The parity alone; the full chain, then other kinds but the shuffled one."""
        others = [c for c in self.lengths if c not in ("full", "shuffled")]
        worked = [self._shown(None, prompt, c) for c in ("full", *others)]
        short_BxT = self._finish(self.running_parity(prompt)[:, -1:])
        return Solution(short_BxT, jnp.stack(worked, 1))

    def reward_cot(
        self, prompt: Prompt, response_BxGxT: Array, data: Any = ()
    ) -> Array:
        """1 where the response is the short answer or a right chain of the mixture."""
        short, worked = self.solution(prompt)
        known = worked if "full" in self.lengths else worked[:, 1:]
        right_BxGxM = (response_BxGxT[:, :, None] == known[:, None]).all(-1)
        right_BxG = right_BxGxM.any(-1) | (response_BxGxT == short[:, None]).all(-1)
        if "shuffled" in self.lengths:
            num_BxG = self.num_reordered(prompt, response_BxGxT)
            right_BxG |= num_BxG == self.format.max_len
        return right_BxG.astype(jnp.float32)

    def num_begun(self, prompt: Prompt, response_BxGxT: Array, data: Any = ()) -> Array:
        """How many tokens begin a right chain of the mixture, BxG; T: it is one."""
        worked = self.solution(prompt).worked
        known = worked if "full" in self.lengths else worked[:, 1:]
        num_BxG = jnp.zeros(response_BxGxT.shape[:2], int)
        if known.shape[1]:
            num_BxG = num_same(response_BxGxT, known)
        if "shuffled" in self.lengths:
            num_BxG = jnp.maximum(num_BxG, self.num_reordered(prompt, response_BxGxT))
        return num_BxG

    def num_reordered(self, prompt: Prompt, response_BxGxT: Array) -> Array:
        """How many tokens begin running parities of the bits in some order, BxG."""
        d = self.num_bits
        sign_BxGxL = token_signs(response_BxGxT)[..., :d]
        step_BxGxL = sign_BxGxL.at[..., 1:].multiply(sign_BxGxL[..., :-1])
        bit_Bx1xL = token_signs(prompt.token[:, None, :d])
        fits_BxGxL = sign_BxGxL != 0
        for bit in (1, -1):  # none is taken more often than there are
            num_Bx1x1 = (bit_Bx1xL == bit).sum(-1, keepdims=True)
            fits_BxGxL &= jnp.cumsum(step_BxGxL == bit, -1) <= num_Bx1x1
        behind = jnp.full(self.format.max_len - d, PAD).at[0].set(EOS)
        is_end_BxGxM = response_BxGxT[..., d:] == behind[None, None]
        fits_BxGxT = jnp.concatenate([fits_BxGxL, is_end_BxGxM], -1)
        return jnp.cumprod(fits_BxGxT, -1).sum(-1)

    def diagnostics(
        self, prompt: Prompt, response_BxGxT: Array, data: Any = ()
    ) -> Diagnostics:
        """Of every kind the share by its length, and how many of these are right."""
        length_BxG = num_tokens(response_BxGxT, self.format)
        right_BxG = self.reward_e2e(prompt, response_BxGxT)
        everyone_BxG = jnp.ones_like(length_BxG, bool)
        found: Diagnostics = {}
        for chain, length in self.lengths.items():
            is_it_BxG = length_BxG == length
            found[f"share_{chain}"] = (is_it_BxG, everyone_BxG)
            found[f"right_{chain}"] = (right_BxG, is_it_BxG)
        return found

    def _shown(self, key: Any, prompt: Prompt, chain: str) -> Array:
        """The tokens of a chain, BxT; `key` is for the order of a shuffled one."""
        parity_BxL = self.running_parity(prompt)
        if chain == "shuffled":
            sign_BxL = token_signs(prompt.token[:, : self.num_bits])
            order = jax.random.uniform(key, sign_BxL.shape).argsort(1)
            shuffled_BxL = jnp.take_along_axis(sign_BxL, order, 1)
            return self._finish(jnp.cumprod(shuffled_BxL, 1))
        if chain == "repeated":
            return self._finish(jnp.repeat(parity_BxL, 2, 1))
        leap, d = LEAPS[chain], self.num_bits
        position_M = np.append(np.arange(leap - 1, d - 1, leap), d - 1)
        return self._finish(parity_BxL[:, position_M])
