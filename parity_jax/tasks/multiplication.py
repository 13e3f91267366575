"""Multiplication of two n-digit numbers with long and short demonstrations.

The chain is that of Deng, Choi, Shieber (arXiv 2405.14838), as in the paper's section
on multiplication. Every number has its least significant digit first; 365 * 417:

    prompt  5 6 3 * 7 1 4||
    long    5 5 5 2 + 0 5 6 3 0 ( 5 0 2 6 0 ) + 0 0 0 6 4 1 #### 5 0 2 2 5 1
    short   #### 5 0 2 2 5 1

"+" joins the products with one digit each, shifted by zeros, a sum so far stands in
parentheses, and "####" announces the answer of 2n digits. That a short demonstration is
a long one without its chain, "####" included, is ours. The kind then shows in the first
token: a calibrated model begins with "####" with probability 1 - p_cot whatever else it
has learned, so that greedy decoding becomes long at p_cot = 1/2.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from parity_jax.config import require
from parity_jax.hypers import Hypers
from parity_jax.responses import is_end, num_tokens, response_mask
from parity_jax.tasks.task import Diagnostics, Reward, Solution, TaskConfig, texts_of
from parity_jax.types import Batch, Key, Prompt, ResponseFormat

PAD, EOS = 0, 1
TIMES, BAR, PLUS, LEFT, RIGHT, MARK, ZERO = range(2, 9)
SYMBOLS = np.array([*"_.*", "||", *"+()", "####", *"0123456789"])  # text of each token


def carried(column_BxIxO: Array) -> Array:
    """Digits of the numbers with these column sums, lowest first, modulo 10^M."""

    def column(carry: Array, total: Array) -> tuple[Array, Array]:
        total = total + carry
        return total // 10, total % 10

    zero = jnp.zeros_like(column_BxIxO[..., 0])
    columns = jnp.moveaxis(column_BxIxO, -1, 0)
    return jnp.moveaxis(jax.lax.scan(column, zero, columns)[1], 0, -1)


def partial_products(a_BxI: Array, b_BxI: Array) -> Array:
    """Digits of a b_i 10^i for every digit b_i, BxIxO with O = 2n; no int32 is > 89."""
    n = a_BxI.shape[1]
    shifted = [
        jnp.pad(a_BxI * b_BxI[:, i : i + 1], ((0, 0), (i, n - i))) for i in range(n)
    ]
    return carried(jnp.stack(shifted, 1))


def mistaken(key: Key, digit: Array, is_wrong: Array) -> Array:
    """Digits, where is_wrong replaced by one of the nine others."""
    shift = jax.random.randint(key, digit.shape, 1, 10)
    return jnp.where(is_wrong, (digit + shift) % 10, digit)


def spelled(digit_BxI: Array, before: int = PAD, after: int = PAD) -> Array:
    """Digits as tokens, between two symbols; PAD is none."""
    around = ((0, 0), (int(before != PAD), int(after != PAD)))
    return jnp.pad(ZERO + digit_BxI, around, constant_values=((0, 0), (before, after)))


@dataclass(frozen=True)
class MultiplicationConfig(TaskConfig):
    """Product of two numbers of num_digits digits."""

    kind: ClassVar[str] = "multiplication"
    num_digits: int = 4  # n

    def __post_init__(self) -> None:
        inside = 2 <= self.num_digits <= 9
        require(inside, "num_digits", self.num_digits, "must be in [2, 9]")

    def make(self) -> "Multiplication":
        return Multiplication(self.num_digits)

    def check(self, hypers: Hypers) -> None:
        allowed = "must be 0: multiplication has no leap chains"
        require(hypers.p_leap == 0, "p_leap", hypers.p_leap, allowed)


class Multiplication:
    """The product of two numbers of n digits."""

    vocab_size = len(SYMBOLS)
    data = ()

    def __init__(self, n: int):
        self.num_digits = n
        self.prompt_len = 2 * n + 2
        product = jax.ShapeDtypeStruct((1, n, 2 * n), jnp.int32)
        max_len = jax.eval_shape(self._chain, product).shape[1]
        self.format = ResponseFormat(PAD, (EOS,), max_len, short_len=2 * n + 2)
        self.rewards: dict[str, Reward] = {
            "e2e": self.reward_e2e,
            "cot": self.reward_cot,
        }
        # Columns of a partial product that are computed, not filled up: IxO.
        row, column = np.indices((n, 2 * n))
        self.is_computed = (row <= column) & (column <= row + n)

    def sample_prompts(self, key: Key, num_prompts: int, data: Any = ()) -> Prompt:
        """Uniform numbers of exactly n digits (the highest is not 0)."""
        n = self.num_digits
        smallest = np.array([0] * (n - 1) + [1])[None, None]
        digit = jax.random.randint(key, (num_prompts, 2, n), smallest, 10)
        a, b = spelled(digit[:, 0], after=TIMES), spelled(digit[:, 1], after=BAR)
        return Prompt(jnp.concatenate([a, b], 1))

    def demonstrate(
        self, key: Key, prompt: Prompt, hypers: Hypers, data: Any = ()
    ) -> Batch:
        """One demonstration of each prompt; the kinds are sorted as in `Parity`.

        Noise replaces digits by one of the nine others: `step_noise` each digit of the
        partial products of a long demonstration, whose sums and answer then follow from
        the wrong products (modulo the digits they have); `emit_noise` each digit that
        is shown before its answer, and nothing else; `short_noise` one digit of the
        answer of a short demonstration.
        """
        k_kind, k_long, k_short = jax.random.split(key, 3)
        product = partial_products(*self._operands(prompt))
        u_B = jnp.sort(jax.random.uniform(k_kind, (product.shape[0],)))
        long = self._noisy_chain(k_long, product, hypers)
        short = self._noisy_short(k_short, product, hypers)
        response_BxT = jnp.where((u_B < hypers.p_cot)[:, None], long, short)
        return Batch(prompt, response_BxT, response_mask(response_BxT, self.format))

    def solution(self, prompt: Prompt, data: Any = ()) -> Solution:
        """The answer alone, and the full chain."""
        product = partial_products(*self._operands(prompt))
        return Solution(self._short(product), self._chain(product)[:, None])

    def reward_e2e(
        self, prompt: Prompt, response_BxGxT: Array, data: Any = ()
    ) -> Array:
        """1 where the product and EOS follow the last "####", BxG.

        What stands before is not looked at; without "####" the whole response counts.
        """
        product = partial_products(*self._operands(prompt))
        expected = self._steps(product)["answer"][:, None, 1:]
        return (self._answer(response_BxGxT) == expected).all(-1).astype(jnp.float32)

    def reward_cot(
        self, prompt: Prompt, response_BxGxT: Array, data: Any = ()
    ) -> Array:
        """1 where the response is exactly the full chain or the short answer, BxG."""
        short, worked = self.solution(prompt)
        equals_chain = (response_BxGxT == worked).all(-1)
        equals_short = (response_BxGxT == short[:, None]).all(-1)
        return (equals_chain | equals_short).astype(jnp.float32)

    def is_long(self, response_BxGxT: Array) -> Array:
        """Whether a response is longer than a short demonstration, BxG."""
        return num_tokens(response_BxGxT, self.format) >= self.format.short_len

    def diagnostics(
        self, prompt: Prompt, response_BxGxT: Array, data: Any = ()
    ) -> Diagnostics:
        """Where answers and chains are wrong.

        digits          share of the 2n digits of the answer that are right
        steps/<name>    this step of the chain is right, over long responses that are
                        right up to it: product_1, product_2, sum_2, .., answer
        """
        steps = self._steps(partial_products(*self._operands(prompt)))
        answer = steps["answer"][:, None, 1:-1]
        digits = self._answer(response_BxGxT)[..., :-1] == answer
        so_far_BxG = self.is_long(response_BxGxT)
        scores = {"digits": (digits.mean(-1), jnp.ones_like(so_far_BxG))}
        start = 0
        for name, token in steps.items():
            shown = response_BxGxT[..., start : start + token.shape[1]]
            right_BxG = (shown == token[:, None]).all(-1)
            scores[f"steps/{name}"] = (right_BxG, so_far_BxG)
            so_far_BxG &= right_BxG
            start += token.shape[1]
        return scores

    def to_text(self, token_T: Array | np.ndarray) -> str:
        text = " ".join(texts_of(SYMBOLS, token_T))
        return text.replace(" ||", "||").replace("|| ", "||")

    def from_text(self, text: str) -> np.ndarray:
        token = {symbol: i for i, symbol in enumerate(SYMBOLS)}
        symbols = text.replace("||", " || ").split()
        unknown = next((s for s in symbols if s not in token), None)
        if unknown is not None:
            valid = " ".join(SYMBOLS)
            raise ValueError(f"symbol {unknown!r}: must be one of {valid}")
        tokens = np.array([token[s] for s in symbols], np.int32)
        if self.to_text(tokens) != text:
            raise ValueError("symbols must be separated by one space, '||' by none")
        return tokens

    def read_prompt(self, line: str) -> np.ndarray:
        """The prompt `a * b` of a line, also if `||` and an answer, which is checked,
        follow.
        """
        self.from_text(line)
        question, _, response = line.partition("||")
        numbers = question.split(" * ")
        if len(numbers) != 2:
            raise ValueError("must begin with two numbers, as in '1 2 * 3 4||'")
        for number in numbers:
            num_digits = len(number.split(" "))
            if not number.replace(" ", "").isdigit() or num_digits != self.num_digits:
                allowed = f"must have {self.num_digits} digits"
                raise ValueError(f"number {number!r} {allowed}")
        a, b = (int(number.replace(" ", "")[::-1]) for number in numbers)
        product = " ".join(f"{a * b:0{2 * self.num_digits}d}"[::-1])
        if response and not response.endswith(f"#### {product}"):
            raise ValueError(f"must end with the product, '#### {product}'")
        return self.from_text(f"{question}||")

    def _operands(self, prompt: Prompt) -> tuple[Array, Array]:
        """Digits of the two numbers, Bxn each."""
        n = self.num_digits
        return prompt.token[:, :n] - ZERO, prompt.token[:, n + 1 : -1] - ZERO

    def _steps(self, product_BxIxO: Array) -> dict[str, Array]:
        """Tokens of every step of the chain of these partial products, in order."""
        n = self.num_digits
        total_BxIxO = carried(jnp.cumsum(product_BxIxO, 1))
        steps = {}
        for i in range(n):
            product = product_BxIxO[:, i, : n + 1 + i]
            total = total_BxIxO[:, i, : n + 1 + i]
            steps[f"product_{i + 1}"] = spelled(product, PLUS if i > 0 else PAD)
            if 0 < i < n - 1:
                steps[f"sum_{i + 1}"] = spelled(total, LEFT, RIGHT)
        steps["answer"] = spelled(total_BxIxO[:, -1], MARK, EOS)
        return steps

    def _chain(self, product_BxIxO: Array) -> Array:
        """The long response with these partial products, BxT."""
        return jnp.concatenate(list(self._steps(product_BxIxO).values()), 1)

    def _short(self, product_BxIxO: Array) -> Array:
        """The short response with these partial products, BxT."""
        answer = self._steps(product_BxIxO)["answer"]
        pad = self.format.max_len - self.format.short_len
        return jnp.pad(answer, ((0, 0), (0, pad)), constant_values=PAD)

    def _noisy_chain(self, key: Key, product_BxIxO: Array, hypers: Hypers) -> Array:
        k_step, k_emit, k_product, k_token = jax.random.split(key, 4)
        is_wrong = jax.random.bernoulli(k_step, hypers.step_noise, product_BxIxO.shape)
        is_wrong &= self.is_computed[None]
        chain_BxT = self._chain(mistaken(k_product, product_BxIxO, is_wrong))
        is_wrong = jax.random.bernoulli(k_emit, hypers.emit_noise, chain_BxT.shape)
        before_answer_T = (
            np.arange(self.format.max_len) < self.format.max_len - self.format.short_len
        )
        is_wrong &= (chain_BxT >= ZERO) & before_answer_T[None]
        return ZERO + mistaken(k_token, chain_BxT - ZERO, is_wrong)

    def _noisy_short(self, key: Key, product_BxIxO: Array, hypers: Hypers) -> Array:
        k_wrong, k_place, k_token = jax.random.split(key, 3)
        short_BxT = self._short(product_BxIxO)
        shape = (short_BxT.shape[0], 1)
        is_wrong_Bx1 = jax.random.bernoulli(k_wrong, hypers.short_noise, shape)
        place_Bx1 = jax.random.randint(k_place, shape, 1, self.format.short_len - 1)
        is_wrong = is_wrong_Bx1 & (np.arange(self.format.max_len)[None] == place_Bx1)
        return ZERO + mistaken(k_token, short_BxT - ZERO, is_wrong)

    def _answer(self, response_BxGxT: Array) -> Array:
        """The 2n + 1 tokens after the last "####" before EOS, PAD beyond the end."""
        before_eos = jnp.cumsum(is_end(response_BxGxT, self.format), -1) == 0
        is_mark = (response_BxGxT == MARK) & before_eos
        behind_T = jnp.arange(1, self.format.max_len + 1)
        start_BxGx1 = jnp.where(is_mark, behind_T[None, None], 0).max(-1, keepdims=True)
        place = start_BxGx1 + jnp.arange(self.format.short_len - 1)[None, None]
        return jnp.take_along_axis(
            response_BxGxT, place, -1, mode="fill", fill_value=PAD
        )
