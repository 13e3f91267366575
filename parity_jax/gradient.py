"""Gradients of sums over responses, each of which is run only as far as it reaches.

A batch has B prompts with G responses each, most of them short. The prompts are run
once. All responses are run to the short length in one pass that shares their prompts;
the longer ones again, to the end, in blocks of rows, as many as there are. A loss that
is a sum over tokens is the sum over these passes, and so is its gradient, which flows
through the start of its responses (first logits, keys and values) into the prompt:

    start, pull = vjp(prompt pass);    g, c = grad(loss of the short responses)
    for every block of long ones:      g, c += grad(loss of the block)
    return g + pull(c)

About (1 + p_long G) L positions are run for every prompt instead of (1 + G) L.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.blocks import add_rows, at_most, blocks_of, gradient_rows, take_rows
from parity_jax.metrics import Metrics
from parity_jax.models.model import Model, Start, forced_scores, run_prompt
from parity_jax.policy import TokenScores
from parity_jax.rows import sum_of_rows
from parity_jax.types import Params, Prompt

# (scores, target) -> loss and metrics, sums over the tokens of target.mask
TokenLoss = Callable[[TokenScores, Any], tuple[Array, Metrics]]


def response_gradient(
    loss: TokenLoss,
    model: Model,
    params: Params,
    prompt: Prompt,
    target: Any,
    short_len: int,
    temperature: Array | float = 1.0,
) -> tuple[Params, Array, Metrics]:
    """Gradient, loss and metrics of all responses; target is a `Target`."""

    def of_rows(own: tuple[Prompt, Any]) -> tuple[Params, Array, Metrics]:
        prompt, target = own
        begun, pull = jax.vjp(lambda p: run_prompt(model, p, prompt), params)
        mask_BxGxT = target.mask
        batch_size, num_generations, response_len = mask_BxGxT.shape
        is_long_BxG = mask_BxGxT[..., short_len:].any(-1)

        def of_part(params: Params, begun: Start, target: Any) -> tuple[Array, Metrics]:
            scores = forced_scores(model, params, begun, target.token, temperature)
            return loss(scores, target)

        gradient = jax.value_and_grad(of_part, argnums=(0, 1), has_aux=True)
        short = target._replace(mask=mask_BxGxT & ~is_long_BxG[..., None])
        short = jax.tree.map(lambda x: x[..., :short_len], short)
        total = gradient(params, begun, short)

        num_rows = batch_size * num_generations
        rows = jax.tree.map(lambda x: x.reshape(num_rows, 1, response_len), target)
        size = model.gradient_rows or gradient_rows(num_rows, response_len)
        blocks = blocks_of(is_long_BxG.ravel(), min(size, num_rows))

        def add_block(i: Array, total: tuple) -> tuple:
            value, (grads, start_grads) = total
            row_R = blocks.row[i]
            is_row_Rx1x1 = (row_R < num_rows)[:, None, None]
            prompt_R = row_R // num_generations
            part = take_rows(rows, row_R)
            part = part._replace(mask=part.mask & is_row_Rx1x1)
            new, (new_grads, new_start_grads) = gradient(
                params, take_rows(begun, prompt_R), part
            )
            value, grads = jax.tree.map(jnp.add, (value, grads), (new, new_grads))
            return value, (grads, add_rows(start_grads, prompt_R, new_start_grads))

        if response_len > short_len:
            with at_most(len(blocks.row)):
                total = jax.lax.fori_loop(0, blocks.num, add_block, total)
        (value, metrics), (grads, start_grads) = total
        (prompt_grads,) = pull(start_grads)
        return jax.tree.map(jnp.add, grads, prompt_grads), value, metrics

    num_long_B = target.mask[..., short_len:].any(-1).sum(-1)
    return sum_of_rows(of_rows, (prompt, target), num_long_B)
