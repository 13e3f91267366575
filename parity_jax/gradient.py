"""Gradients of sums over responses, each of which is run only as far as it reaches.

A batch has B prompts with G responses each, most of them short. The prompts are run
once. All responses are run to the short length in one pass that shares their prompts;
the longer ones again, to the end, in blocks of rows, as many as there are. A loss that
is a sum over tokens is the sum over these passes, and so is its gradient, which flows
through the start of its responses (first logits, keys and values) into the prompt:

    start, pull = vjp(prompt pass);    g, c = grad(loss of the short responses)
    for every block of long ones:      g, c += grad(loss of the block)
    return g + pull(c)

About (1 + p_long G) L positions are run for every prompt instead of (1 + G) L. What
these passes find of other parameters, or of the same ones before they move, is
`trained_log_probs`: two passes that are arranged otherwise do not agree in bfloat16.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.blocks import (
    Blocks,
    add_rows,
    at_most,
    blocks_of,
    gradient_rows,
    set_rows,
    take_rows,
)
from parity_jax.metrics import Metrics
from parity_jax.models.model import Model, Start, forced_scores, run_prompt
from parity_jax.policy import TokenScores
from parity_jax.rows import each_row, sum_of_rows
from parity_jax.types import Params, Prompt, Response

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
        blocks = long_blocks(model, is_long_BxG, response_len)

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


def trained_log_probs(
    policies: dict[str, Params],
    model: Model,
    prompt: Prompt,
    response: Response,
    short_len: int,
    temperature: Array | float,
) -> dict[str, Array]:
    """Of the response tokens under each policy, BxGxT, by the passes that
    `response_gradient` trains; 0 where none is run, behind short responses.
    """

    def of_rows(own: tuple[Prompt, Array, Array]) -> dict[str, Array]:
        return {name: of_policy(params, *own) for name, params in policies.items()}

    def of_policy(
        params: Params, prompt: Prompt, token_BxGxT: Array, mask_BxGxT: Array
    ) -> Array:
        begun, shape = run_prompt(model, params, prompt), token_BxGxT.shape
        _, num_generations, response_len = shape
        short_BxGxS = token_BxGxT[..., :short_len]
        scores = forced_scores(model, params, begun, short_BxGxS, temperature)
        rest = ((0, 0), (0, 0), (0, response_len - short_len))
        token_NxT = token_BxGxT.reshape(-1, response_len)
        is_long_BxG = mask_BxGxT[..., short_len:].any(-1)
        blocks = long_blocks(model, is_long_BxG, response_len)

        def set_block(i: Array, log_prob_NxT: Array) -> Array:
            row_R = blocks.row[i]
            start = take_rows(begun, row_R // num_generations)
            token_Rx1xT = take_rows(token_NxT, row_R)[:, None]
            scores = forced_scores(model, params, start, token_Rx1xT, temperature)
            return set_rows(log_prob_NxT, row_R, scores.log_prob[:, 0])

        log_prob_NxT = jnp.pad(scores.log_prob, rest).reshape(token_NxT.shape)
        if response_len > short_len:
            with at_most(len(blocks.row)):
                log_prob_NxT = jax.lax.fori_loop(0, blocks.num, set_block, log_prob_NxT)
        return log_prob_NxT.reshape(shape)

    return each_row(of_rows, (prompt, response.token, response.mask))


def long_blocks(model: Model, is_long_BxG: Array, response_len: int) -> Blocks:
    """The long ones of all responses, as many to a block as are trained on at once."""
    num_rows = is_long_BxG.size
    size = model.gradient_rows or gradient_rows(num_rows, response_len)
    return blocks_of(is_long_BxG.ravel(), min(size, num_rows))
