"""Evaluation on fresh or given prompts: greedy and sampled from one prompt pass."""

from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.stats import hypergeom

from parity_jax.config import ConfigError, EvaluateConfig
from parity_jax.decode import sample, tempered
from parity_jax.masked import Mean, Metrics, has_ended, num_tokens
from parity_jax.models import Model, response_logits
from parity_jax.types import EOS, Hypers, Key, Params, Task

Evaluate = Callable[[Key, Params], Metrics]


def decodings(cfg: EvaluateConfig) -> dict[str, float]:
    """Name and temperature of every way the model is decoded; greedy is 0."""
    return {"greedy": 0.0} | {f"t{t:g}": t for t in cfg.temperatures}


def read_prompts(path: str, task: Task) -> Array:
    """The prompts of a text file, one a line; ConfigError names a bad line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("eval_file", path, f"cannot be read: {error}") from None
    if not lines:
        raise ConfigError("eval_file", path, "must have at least one line")
    prompts = []
    for number, line in enumerate(lines, 1):
        try:
            prompts.append(task.read_prompt(line))
        except ValueError as error:
            raise ConfigError("eval_file", path, f"line {number}: {error}") from None
    return jnp.stack(prompts)


class Scored(NamedTuple):
    """Scores of every response, BxG each."""

    correct: Array  # the last token is right and the response has ended
    cot: Array  # every token is right (the task's "cot" reward)
    is_long: Array  # the response shows its work
    ended: Array  # it has an EOS
    length: Array  # tokens before EOS
    first_wrong: Array  # first token, from 1, that departs from the worked solution
    departs: Array  # whether there is one
    p_stop: Array  # P(EOS) where a short response stops, given the tokens before
    is_begun: Array  # whether these tokens begin the worked solution


def make_evaluate(
    cfg: EvaluateConfig, task: Task, model: Model, given_BxL: Array | None = None
) -> Evaluate:
    """Scores named `<decoding>/<score>`: means over prompts and their samples.

    The prompts are the given ones, or num_prompts fresh ones.

    accuracy, cot, p_long, ended     shares of the responses, see `Scored`
    accuracy_long, accuracy_short    accuracy given that the work is shown, or not
    length_mean, length_median       tokens before EOS
    first_wrong     over long responses that depart from the worked solution
    p_stop_begun, p_stop_departed    exact from the logits (at the temperature of the
                    decoding; greedy: 1), by whether the tokens before are right
    pass@k, maj@k   with num_samples >= k > 1, see `success_tables`
    and what the task's `diagnostics` add
    """
    temperatures = decodings(cfg)
    num_samples = [1 if t == 0 else cfg.num_samples for t in temperatures.values()]
    temperature_G = np.repeat(list(temperatures.values()), num_samples)
    tables = success_tables(cfg.num_samples)

    def evaluate(key: Key, params: Params) -> Metrics:
        k_prompt, k_sample = jax.random.split(key)
        prompt_BxL = given_BxL
        if prompt_BxL is None:
            prompt_BxL = task.sample_prompts(k_prompt, cfg.num_prompts)
        # Without noise nothing is drawn: these are the worked solutions.
        worked = task.demonstrate(k_prompt, prompt_BxL, Hypers(p_cot=1.0))
        response = sample(
            k_sample,
            model,
            params,
            worked.prompt,
            jnp.array(temperature_G),
            task.response_len,
            task.short_len,
        )
        begin_BxGxT = response.token[..., : task.short_len]
        logits = response_logits(model, params, worked.prompt, begin_BxGxT)[:, :, -1]
        logits = tempered(logits, jnp.array(temperature_G)[None, :, None])
        p_stop_BxG = jax.nn.softmax(logits)[..., EOS]
        scored = score(task, worked.prompt, worked.response, response.token, p_stop_BxG)
        diagnostics = task.diagnostics(worked.prompt, response.token)
        metrics: Metrics = {}
        ends = np.cumsum(num_samples)
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
        return metrics

    return evaluate


def score(
    task: Task, prompt_BxL: Array, worked_BxT: Array, token_BxGxT: Array, p_stop: Array
) -> Scored:
    """Every score of every response; `worked` are the whole right responses."""
    is_wrong_BxGxT = token_BxGxT != worked_BxT[:, None]
    return Scored(
        correct=task.rewards["e2e"](prompt_BxL, token_BxGxT) > 0,
        cot=task.rewards["cot"](prompt_BxL, token_BxGxT) > 0,
        is_long=task.is_long(token_BxGxT),
        ended=has_ended(token_BxGxT),
        length=num_tokens(token_BxGxT).astype(jnp.float32),
        first_wrong=1.0 + jnp.argmax(is_wrong_BxGxT, -1),
        departs=is_wrong_BxGxT.any(-1),
        p_stop=p_stop,
        is_begun=~is_wrong_BxGxT[..., : task.short_len - 1].any(-1),
    )


def means(scored: Scored) -> Metrics:
    """The means of one decoding."""
    is_long, correct = scored.is_long, scored.correct
    return {
        "accuracy": Mean.over(correct),
        "cot": Mean.over(scored.cot),
        "p_long": Mean.over(is_long),
        "accuracy_long": Mean.over(correct, is_long),
        "accuracy_short": Mean.over(correct, ~is_long),
        "length_mean": Mean.over(scored.length),
        "length_median": Mean.over(jnp.median(scored.length)),
        "ended": Mean.over(scored.ended),
        "first_wrong": Mean.over(scored.first_wrong, is_long & scored.departs),
        "p_stop_begun": Mean.over(scored.p_stop, scored.is_begun),
        "p_stop_departed": Mean.over(scored.p_stop, ~scored.is_begun),
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
