"""A gated linear recurrence: no attention, a state of fixed size (as minGRU, Mamba).

For every channel of a block, with gates that see the token and its position only:

    h_t = a_t h_{t-1} + (1 - a_t) v_t,   a_t = sg(W_a x_t),  v_t = W_v x_t
    out_t = W_o (h_t * silu(W_g x_t))

so that a whole sequence is one associative scan. The state after the prompt is all that
its responses know of it.
"""

from dataclasses import dataclass
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.config import kind_of, require, require_positive
from parity_jax.models.model import (
    MAX_DEPTH,
    Model,
    ModelConfig,
    applied,
    require_one_length,
)
from parity_jax.tasks.task import Task, TaskConfig
from parity_jax.types import Key, Params, Prompt

LONGEST = 6.0  # a channel forgets 1 / (1 + e^6) of its state a token at first, or more
States = tuple[Array, ...]  # NxD of every block


@dataclass(frozen=True)
class RecurrentConfig(ModelConfig):
    """Blocks of a gated linear recurrence and a GELU layer; learned positions."""

    kind: ClassVar[str] = "recurrent"
    depth: int = 2
    width: int = 128

    def __post_init__(self) -> None:
        require_positive(self, "depth", "width")
        at_most = f"must be at most {MAX_DEPTH}"
        require(self.depth <= MAX_DEPTH, "depth", self.depth, at_most)

    def check(self, task: TaskConfig) -> None:
        kind = kind_of(type(self))
        allowed = "must be a transformer with positions='rotary'"
        require_one_length(task.make(), "model.kind", kind, allowed)

    def make(self, task: Task) -> Model:
        return make_recurrent(self, task)


def recurrence(keep_NxTxD: Array, value_NxTxD: Array, state_NxD: Array) -> Array:
    """h_t = keep_t h_{t-1} + (1 - keep_t) value_t from a state on, NxTxD."""

    def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple:
        kept, added = right
        return left[0] * kept, left[1] * kept + added

    parts = (keep_NxTxD, (1 - keep_NxTxD) * value_NxTxD)
    kept_NxTxD, added_NxTxD = jax.lax.associative_scan(combine, parts, axis=1)
    return kept_NxTxD * state_NxD[:, None] + added_NxTxD


class Block(nn.Module):
    """Pre-norm residual block: the recurrence, then a GELU layer."""

    cfg: RecurrentConfig

    def setup(self) -> None:
        width, std = self.cfg.width, self.cfg.width**-0.5
        normal, small = (
            nn.initializers.normal(s) for s in (std, std / (2 * self.cfg.depth) ** 0.5)
        )
        memory_D = jnp.linspace(0, LONGEST, width, dtype=jnp.float32)
        self.keep = nn.Dense(
            width, kernel_init=normal, bias_init=lambda *_: memory_D.copy()
        )
        self.value = nn.Dense(width, kernel_init=normal)
        self.gate = nn.Dense(width, kernel_init=normal)
        self.out = nn.Dense(width, kernel_init=small)
        self.norm, self.mlp_norm = nn.LayerNorm(), nn.LayerNorm()
        self.up = nn.Dense(4 * width, kernel_init=normal)
        self.down = nn.Dense(width, kernel_init=small)

    def __call__(self, x_NxTxD: Array, state_NxD: Array) -> tuple[Array, Array]:
        """The output, and the state behind the last token."""
        y = self.norm(x_NxTxD)
        keep_NxTxD = jax.nn.sigmoid(self.keep(y))
        h_NxTxD = recurrence(keep_NxTxD, self.value(y), state_NxD)
        x_NxTxD = x_NxTxD + self.out(h_NxTxD * jax.nn.silu(self.gate(y)))
        mlp = self.down(jax.nn.gelu(self.up(self.mlp_norm(x_NxTxD))))
        return x_NxTxD + mlp, h_NxTxD[:, -1]


class Recurrent(nn.Module):
    """Token and position embedding, blocks, final norm and unembedding."""

    cfg: RecurrentConfig
    vocab_size: int
    max_len: int
    prompt_len: int

    def setup(self) -> None:
        init = nn.initializers.normal(self.cfg.width**-0.5)
        self.embed = nn.Embed(self.vocab_size, self.cfg.width, embedding_init=init)
        self.position = nn.Embed(self.max_len, self.cfg.width, embedding_init=init)
        self.blocks = [Block(self.cfg) for _ in range(self.cfg.depth)]
        self.final_norm = nn.LayerNorm()
        self.unembed = nn.Dense(self.vocab_size, use_bias=False, kernel_init=init)

    def __call__(self, token_NxT: Array) -> Array:
        """logits_NxTxV of the token after each, of whole sequences."""
        x_NxTxD, _ = self._run(token_NxT, 0, self._begin(len(token_NxT)))
        return self.unembed(x_NxTxD)

    def prompt_pass(self, prompt: Prompt) -> tuple[Array, States]:
        """hidden_BxD after the prompt, and the states there."""
        if prompt.mask is not None:
            raise ValueError("learned positions: prompts must be of one length")
        x_BxLxD, states = self._run(prompt.token, 0, self._begin(len(prompt.token)))
        return x_BxLxD[:, -1], states

    def response_pass(self, token_BxGxT: Array, states: States) -> Array:
        """hidden_BxGxTxD after each response token."""
        b, g, t = token_BxGxT.shape
        rows = repeated(states, g)
        x_NxTxD, _ = self._run(token_BxGxT.reshape(b * g, t), self.prompt_len, rows)
        return x_NxTxD.reshape(b, g, t, -1)

    def decode_step(
        self, token_BxG: Array, index: Array, prompt: States, states: States
    ) -> tuple[Array, States]:
        """hidden_BxGxD after response token `index`, and the states there."""
        x_Nx1xD, states = self._run(
            token_BxG.reshape(-1, 1), self.prompt_len + index, states
        )
        return x_Nx1xD.reshape(*token_BxG.shape, -1), states

    def logits(self, hidden: Array) -> Array:
        """Logits of hidden states that went through the final norm."""
        return self.unembed(hidden)

    def _begin(self, num_rows: int) -> States:
        return (jnp.zeros((num_rows, self.cfg.width), jnp.float32),) * self.cfg.depth

    def _run(
        self, token_NxT: Array, start: Array | int, states: States
    ) -> tuple[Array, States]:
        """x_NxTxD behind the final norm, and the states behind the last token."""
        x_NxTxD = self.embed(token_NxT)
        x_NxTxD += self.position(start + jnp.arange(token_NxT.shape[1]))[None]
        ends = []
        for block, state_NxD in zip(self.blocks, states, strict=True):
            x_NxTxD, end_NxD = block(x_NxTxD, state_NxD)
            ends.append(end_NxD)
        return self.final_norm(x_NxTxD), tuple(ends)


def repeated(states: States, num_generations: int) -> States:
    """The states of prompts for each of their responses, N = B G rows."""
    return jax.tree.map(lambda x: jnp.repeat(x, num_generations, 0), states)


def make_recurrent(cfg: RecurrentConfig, task: Task) -> Model:
    """The recurrence as pure functions, for the vocabulary and lengths of a task."""
    max_len = task.prompt_len + task.format.max_len
    module = Recurrent(cfg, task.vocab_size, max_len, task.prompt_len)

    def init(key: Key) -> Params:
        return module.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def empty_cache(states: States, num_generations: int, response_len: int) -> States:
        """Where responses begin: the states behind their prompts."""
        return repeated(states, num_generations)

    return Model(
        init=init,
        prompt_pass=applied(module, "prompt_pass"),
        response_pass=applied(module, "response_pass"),
        empty_cache=empty_cache,
        decode_step=applied(module, "decode_step"),
        unembed=applied(module, "logits"),
    )
