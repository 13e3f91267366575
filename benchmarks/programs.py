"""The programs that `make bench` times, and the models that answer at given lengths."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import baseline
from parity_jax.decode import sample
from parity_jax.evaluate import EvaluateConfig, make_evaluate
from parity_jax.hypers import Hypers
from parity_jax.metrics import Mean, Metrics
from parity_jax.models import Model, gpt2
from parity_jax.population import Population, PopulationConfig, make_population
from parity_jax.stages import PolicyGradientConfig, RolloutConfig, StageConfig
from parity_jax.stages.stage import StepKeys
from parity_jax.tasks import MultiplicationConfig, ParityConfig, Task
from parity_jax.types import Data, Prompt, StageState

Window = Callable[[], None]  # a piece of work, waited for
DEPTH, WIDTH, P_COT, GROUP = 2, 128, 0.25, 8
BATCH = {16: (128, 64), 50: (64, 32)}  # num_bits: demonstrations, prompts of a rollout
NEVER = -60.0  # logit of a token that does not come


def length_table(num_bits: int, p_long: float) -> np.ndarray:
    """TxV logits: short answers and full chains of random bits, long with p_long."""
    table = np.full((num_bits + 1, 5), NEVER, np.float32)
    table[:, baseline.PLUS :] = 0
    with np.errstate(divide="ignore"):
        go_on = np.maximum(np.log(p_long / 2), NEVER)
        stop = np.maximum(np.log(1 - p_long), NEVER)
    table[1, baseline.PLUS :], table[1, baseline.EOS] = go_on, stop
    table[-1, baseline.PLUS :], table[-1, baseline.EOS] = NEVER, 0
    return table


def steered(model: Model, table: np.ndarray) -> Model:
    """The model with the logits of a table; its work is all done.

    A hidden state carries the logits that the table has at its position.
    """
    table_TxV = jnp.array(table)
    vocab_size = table.shape[1]

    def with_rows(hidden: Any, row: Any) -> Any:
        rows = jnp.broadcast_to(row, (*hidden.shape[:-1], vocab_size))
        return jnp.concatenate([hidden, rows], -1)

    def prompt_pass(params: Any, prompt: Prompt) -> Any:
        hidden_BxD, context = model.prompt_pass(params, prompt)
        return with_rows(hidden_BxD, table_TxV[:1]), context

    def response_pass(params: Any, token: Any, context: Any) -> Any:
        hidden_BxGxTxD = model.response_pass(params, token, context)
        rows_TxV = table_TxV[1 : 1 + token.shape[-1]]
        return with_rows(hidden_BxGxTxD, rows_TxV[None, None])

    def decode_step(params: Any, token: Any, index: Any, *rest: Any) -> Any:
        hidden_BxGxD, cache = model.decode_step(params, token, index, *rest)
        return with_rows(hidden_BxGxD, table_TxV[index + 1][None, None]), cache

    def unembed(params: Any, hidden: Any) -> Any:
        logits = model.unembed(params, hidden[..., :-vocab_size])
        return baseline.steered(logits, hidden[..., -vocab_size:])

    return model._replace(
        prompt_pass=prompt_pass,
        response_pass=response_pass,
        decode_step=decode_step,
        unembed=unembed,
    )


def population(
    stage: StageConfig,
    num_bits: int,
    num: int,
    table: np.ndarray | None = None,
    only_samples: bool = False,
    temperature: float = 1.0,
    depth: int = DEPTH,
    **layout: int,
) -> Population:
    """num members that differ in their seeds; steps may only draw their responses."""
    task = ParityConfig(num_bits).make()
    model = gpt2(depth, WIDTH).make(task)
    model = model if table is None else steered(model, table)
    evaluate = make_evaluate(EvaluateConfig(num_prompts=256), task, model)
    functions = stage.make(task, model, evaluate)
    if only_samples:
        functions = functions._replace(step=partial(draw, stage.rollout, task, model))
    axes, hypers = {"seed": tuple(range(num))}, Hypers(P_COT, temperature=temperature)
    return make_population(PopulationConfig(**layout), functions, axes, hypers)


def draw(
    cfg: RolloutConfig, task: Task, model: Model, state: StageState, data: Data
) -> tuple[StageState, Metrics]:
    """A step that samples the responses of a rollout and learns nothing."""
    k_prompt, k_sample = jax.random.split(StepKeys.of(state).data)
    prompt = task.sample_prompts(k_prompt, cfg.num_prompts, data.task)
    temperature_G = jnp.full(cfg.num_generations, state.hypers.temperature)
    response = sample(k_sample, model, state.params, prompt, temperature_G, task.format)
    state = state._replace(step=state.step + 1)
    return state, {"loss": Mean.over(response.log_prob)}


def steps_of(members: Population, num_steps: int = 1) -> Window:
    """Steps of all members, in one call as between two records of a run."""
    states = [members.init(None)]

    def window() -> None:
        start = (states[0], members.no_metrics())
        states[0], metrics = members.advance(*start, num_steps)
        jax.block_until_ready(metrics)

    return window


def torch_model(num_bits: int, depth: int = DEPTH) -> tuple[Any, Any]:
    """A fresh baseline model and its optimizer."""
    model = baseline.Gpt(depth, WIDTH, 5, 2 * num_bits + 2)
    return model, baseline.make_optimizer(model)


def products(num: int) -> Population:
    """GRPO on products of two numbers of 3 digits, of members that are alike: others
    that are untrained answer at other lengths.
    """
    task = MultiplicationConfig(3).make()
    model = gpt2(DEPTH, WIDTH).make(task)
    cfg = PolicyGradientConfig(RolloutConfig(32, GROUP), loss_type="dapo")
    stage = cfg.make(task, model, make_evaluate(EvaluateConfig(8, ()), task, model))
    axes = {"seed": (0,), "p_cot": (0.25, 0.5)[:num]}  # which GRPO does not read
    return make_population(PopulationConfig(), stage, axes, Hypers(), Data(task.data))
