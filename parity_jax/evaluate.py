"""Evaluation on fresh or given prompts: greedy and sampled from one prompt pass."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.stats import hypergeom

from parity_jax.config import (
    MAX_SIZE,
    ConfigError,
    expanded,
    number_text,
    require,
    require_default,
    require_float32,
    require_positive,
)
from parity_jax.decode import sample
from parity_jax.metrics import Mean, Metrics
from parity_jax.models.model import Model, response_logits
from parity_jax.policy import tempered
from parity_jax.responses import has_ended, left_padded, num_tokens
from parity_jax.tasks.task import (
    Diagnostics,
    FiniteTask,
    Task,
    num_begun,
    typed_prompt,
)
from parity_jax.types import Data, Key, Params, Prompt

Evaluate = Callable[[Key, Params, Data], Metrics]
MIN_TEMPERATURE, MAX_SAMPLES = 1e-3, 1024


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation on fresh prompts: greedy, and sampled at each temperature."""

    # Fresh prompts, or at most so many test rows; of an eval_file all are taken.
    num_prompts: int = 512
    temperatures: tuple[float, ...] = (0.75, 1.0, 1.5)
    num_samples: int = 1  # responses to each prompt at each temperature
    batch_size: int = 0  # prompts that are answered together; 0: all

    def __post_init__(self) -> None:
        require_positive(self, "num_prompts", "num_samples")
        allowed = f"must be at most {MAX_SAMPLES}"
        few = self.num_samples <= MAX_SAMPLES
        each = 1 + len(self.temperatures) * self.num_samples
        most = f"times {each} responses to each must be at most {MAX_SIZE}"
        num = self.num_prompts
        require(num * each <= MAX_SIZE, "num_prompts", num, most)
        size = self.batch_size
        require(size >= 0, "batch_size", size, "must be 0 (all) or positive")
        require(few, "num_samples", self.num_samples, allowed)
        for value in self.temperatures:
            allowed = f"must be finite and >= {MIN_TEMPERATURE:g} (greedy is always in)"
            inside = MIN_TEMPERATURE <= value < np.inf
            require(inside, "temperatures", value, allowed)
            require_float32("temperatures", value, MIN_TEMPERATURE)
        different = {float(np.float32(value)) for value in self.temperatures}
        distinct = len(different) == len(self.temperatures)
        allowed = "must be distinct, as float32 has them"
        require(distinct, "temperatures", self.temperatures, allowed)
        is_sampled = bool(self.temperatures)
        require_default(self, is_sampled, "without temperatures", "num_samples")


def decodings(cfg: EvaluateConfig) -> dict[str, float]:
    """Name and temperature of every way the model is decoded; greedy is 0."""
    return {"greedy": 0.0} | {f"t{number_text(t)}": t for t in cfg.temperatures}


def read_prompts(path: str, task: Task) -> Prompt:
    """The prompts of a text file, one a line; ConfigError names a bad line.

    A byte order mark, blank lines and spaces at the end of a line do not count.
    """
    file = expanded("eval_file", path)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("eval_file", path, f"cannot be read: {error}") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompts.append(typed_prompt(task, line.rstrip()))
        except ValueError as error:
            raise ConfigError("eval_file", path, f"line {number}: {error}") from None
    if not prompts:
        raise ConfigError("eval_file", path, "must have at least one prompt")
    return left_padded(prompts, task.format)


def held_out_prompts(cfg: EvaluateConfig, task: Task) -> Prompt | None:
    """The test rows that are evaluated; None of a task that has no rows."""
    if not isinstance(task, FiniteTask):
        return None
    return jax.tree.map(lambda x: x[: cfg.num_prompts], task.eval_prompts)


class Scored(NamedTuple):
    """Scores of every response, BxG each."""

    correct: Array  # the last token is right and the response has ended
    cot: Array  # every token is right, long or short (the task's "cot")
    is_long: Array  # the response shows its work
    ended: Array  # it has an end
    length: Array  # tokens before the end
    chain: "Chain | None"  # where it is known how it can be worked out


class Chain(NamedTuple):
    """Scores of every response that are told by the worked solutions, BxG each."""

    first_wrong: Array  # first token, from 1, with which it is none of them
    departs: Array  # whether there is one
    p_stop: Array  # P(end) where a short response ends, given the tokens before
    is_begun: Array  # whether these tokens begin one of them


def make_evaluate(cfg: EvaluateConfig, task: Task, model: Model) -> Evaluate:
    """Scores named `<decoding>/<score>`: means over prompts and their samples.

    The prompts are those of `Data.eval_prompts`, or num_prompts fresh ones.

    accuracy, cot, p_long, ended     shares of the responses, see `Scored`
    accuracy_long, accuracy_short    accuracy given that the work is shown, or not
    length_mean, length_median       tokens before the end
    first_wrong     over long responses that depart from all worked solutions
    p_stop_begun, p_stop_departed    exact from the logits (at the temperature of the
                    decoding; greedy: 1), by whether the tokens before are right;
                    these three are not of tasks with rows, whose work may be another
    pass@k, maj@k   with num_samples >= k > 1, see `success_tables`
    and what the task's `diagnostics` add; means over nothing if a probability is NaN
    """
    temperatures = decodings(cfg)
    num_samples = [1 if t == 0 else cfg.num_samples for t in temperatures.values()]
    temperature_G = np.repeat(list(temperatures.values()), num_samples)
    tables = success_tables(cfg.num_samples)
    short_len, end_ids = task.format.short_len, list(task.format.end_ids)

    def p_stop(params: Params, prompt: Prompt, token_BxGxT: Array) -> Array:
        """P(end) where a short response ends, given the tokens before, BxG."""
        begin_BxGxT = token_BxGxT[..., :short_len]
        logits = response_logits(model, params, prompt, begin_BxGxT)[:, :, -1]
        logits = tempered(logits, jnp.array(temperature_G)[None, :, None])
        return jax.nn.softmax(logits)[..., end_ids].sum(-1)

    def evaluate(key: Key, params: Params, data: Data) -> Metrics:
        k_prompt, k_sample = jax.random.split(key)
        prompt = data.eval_prompts
        if prompt is None:
            prompt = task.sample_prompts(k_prompt, cfg.num_prompts, data.task)

        def answered(key: Key, prompt: Prompt) -> tuple[Scored, Diagnostics, Array]:
            temperature = jnp.array(temperature_G)
            response = sample(key, model, params, prompt, temperature, task.format)
            p_stop_BxG = None
            if not isinstance(task, FiniteTask):
                p_stop_BxG = p_stop(params, prompt, response.token)
            scored = score(task, prompt, response.token, p_stop_BxG, data)
            diagnostics = task.diagnostics(prompt, response.token, data.task)
            return scored, diagnostics, ~jnp.isnan(response.log_prob).any(-1)

        answers = in_batches(answered, k_sample, prompt, cfg.batch_size)
        scored, diagnostics, is_number_BxG = answers
        metrics: Metrics = {}
        ends = np.cumsum(num_samples)
        taken = {*jax.eval_shape(means, scored), *tables}
        for k in diagnostics:
            allowed = "must be named otherwise: evaluation has a score of this name"
            require(k not in taken, "diagnostics", k, allowed)
        for name, end, num in zip(temperatures, ends, num_samples, strict=True):
            columns = slice(end - num, end)
            own = jax.tree.map(itemgetter((slice(None), columns)), scored)
            metrics |= {f"{name}/{k}": v for k, v in means(own).items()}
            for k, (value_BxG, mask_BxG) in diagnostics.items():
                mean = Mean.over(value_BxG[:, columns], mask_BxG[:, columns])
                metrics[f"{name}/{k}"] = mean
            if num > 1:
                num_right_B = own.correct.astype(int).sum(-1)
                for k, table in tables.items():
                    metrics[f"{name}/{k}"] = Mean.over(jnp.array(table)[num_right_B])
        is_policy = is_number_BxG.all()  # what is drawn from NaN says nothing
        return jax.tree.map(lambda x: jnp.where(is_policy, x, 0), metrics)

    return jax.jit(evaluate, inline=True)  # traced once for all stages that have it


def in_batches(
    answered: Callable[[Key, Prompt], tuple[Scored, Diagnostics, Array]],
    key: Key,
    prompt: Prompt,
    batch_size: int,
) -> tuple[Scored, Diagnostics, Array]:
    """answered(key, prompt) of all prompts, so many of them at a time (0: all)."""
    num = prompt.token.shape[0]
    if not 0 < batch_size < num:
        return answered(key, prompt)
    num_batches = -(-num // batch_size)

    def split(x: Array) -> Array:
        place = jnp.arange(num_batches * batch_size) % num  # the last batch is filled
        return x[place].reshape(num_batches, batch_size, *x.shape[1:])

    batches = (jax.random.split(key, num_batches), jax.tree.map(split, prompt))
    found = jax.lax.map(lambda batch: answered(*batch), batches)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:num], found)


def score(
    task: Task,
    prompt: Prompt,
    token_BxGxT: Array,
    p_stop_BxG: Array | None,
    data: Data,
) -> Scored:
    """Every score of every response; without p_stop none of `Chain`."""
    chain = None
    if p_stop_BxG is not None:
        num_BxG = num_begun(task, prompt, token_BxGxT, data.task)
        chain = Chain(
            first_wrong=1.0 + num_BxG,
            departs=num_BxG < token_BxGxT.shape[-1],
            p_stop=p_stop_BxG,
            is_begun=num_BxG >= task.format.short_len - 1,
        )
    return Scored(
        correct=task.rewards["e2e"](prompt, token_BxGxT, data.task) > 0,
        cot=task.rewards["cot"](prompt, token_BxGxT, data.task) > 0,
        is_long=task.is_long(token_BxGxT),
        ended=has_ended(token_BxGxT, task.format),
        length=num_tokens(token_BxGxT, task.format).astype(jnp.float32),
        chain=chain,
    )


def means(scored: Scored) -> Metrics:
    """The means of one decoding."""
    is_long, correct, chain = scored.is_long, scored.correct, scored.chain
    found = {
        "accuracy": Mean.over(correct),
        "cot": Mean.over(scored.cot),
        "p_long": Mean.over(is_long),
        "accuracy_long": Mean.over(correct, is_long),
        "accuracy_short": Mean.over(correct, ~is_long),
        "length_mean": Mean.over(scored.length),
        "length_median": Mean.over(jnp.median(scored.length)),
        "ended": Mean.over(scored.ended),
    }
    if chain is None:
        return found
    return found | {
        "first_wrong": Mean.over(chain.first_wrong, is_long & chain.departs),
        "p_stop_begun": Mean.over(chain.p_stop, chain.is_begun),
        "p_stop_departed": Mean.over(chain.p_stop, ~chain.is_begun),
    }


def success_tables(num_samples: int) -> dict[str, np.ndarray]:
    """pass@k and maj@k of a prompt by its number of right samples, 0 .. num_samples.

    k = 2, 4, 8, .. up to num_samples are drawn from the samples without replacement:
    unbiased estimates for k independent samples. pass@k: one of them is right. maj@k:
    more than half are, a tie counts half; that is the majority vote where an answer is
    one of two, and a lower bound of it elsewhere.
    """
    tables = {}
    k = 2
    while k <= num_samples:
        right = hypergeom(num_samples, np.arange(num_samples + 1), k)
        tables[f"pass@{k}"] = right.sf(0).astype(np.float32)
        majority = right.sf(k // 2) + right.pmf(k // 2) / 2
        tables[f"maj@{k}"] = majority.astype(np.float32)
        k *= 2
    return tables
