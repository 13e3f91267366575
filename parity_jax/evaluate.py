"""Evaluation on fresh or given prompts: greedy and sampled from one prompt pass."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.config import ConfigError, EvaluateConfig
from parity_jax.decode import sample
from parity_jax.masked import Mean, Metrics, has_ended, num_tokens
from parity_jax.models import Model
from parity_jax.types import Key, Params, Task

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


def make_evaluate(
    cfg: EvaluateConfig, task: Task, model: Model, given_BxL: Array | None = None
) -> Evaluate:
    """Scores named `<decoding>/<score>`, on the given prompts or on num_prompts new.

    accuracy        the last token is right and the response has ended
    cot             every token is right (the task's "cot" reward)
    p_long          the response shows its work
    accuracy_long, accuracy_short    accuracy given either
    length_mean, length_median       tokens before EOS
    ended           the response has an EOS
    and what the task's `diagnostics` add
    """
    temperatures = decodings(cfg)

    def evaluate(key: Key, params: Params) -> Metrics:
        k_prompt, k_sample = jax.random.split(key)
        prompt_BxL = given_BxL
        if prompt_BxL is None:
            prompt_BxL = task.sample_prompts(k_prompt, cfg.num_prompts)
        temperature_G = jnp.array(list(temperatures.values()))
        response = sample(
            k_sample, model, params, prompt_BxL, temperature_G, task.response_len
        )
        correct_BxG = task.rewards["e2e"](prompt_BxL, response.token)
        cot_BxG = task.rewards["cot"](prompt_BxL, response.token)
        is_long_BxG = task.is_long(response.token)
        ended_BxG = has_ended(response.token)
        length_BxG = num_tokens(response.token)
        diagnostics = task.diagnostics(prompt_BxL, response.token)
        metrics: Metrics = {}
        for g, name in enumerate(temperatures):
            correct, is_long = correct_BxG[:, g], is_long_BxG[:, g]
            length = length_BxG[:, g].astype(jnp.float32)
            metrics |= {
                f"{name}/accuracy": Mean.over(correct),
                f"{name}/cot": Mean.over(cot_BxG[:, g]),
                f"{name}/p_long": Mean.over(is_long),
                f"{name}/accuracy_long": Mean.over(correct, is_long),
                f"{name}/accuracy_short": Mean.over(correct, ~is_long),
                f"{name}/length_mean": Mean.over(length),
                f"{name}/length_median": Mean.over(jnp.median(length)),
                f"{name}/ended": Mean.over(ended_BxG[:, g]),
            }
            for score, (value_BxG, mask_BxG) in diagnostics.items():
                mean = Mean.over(value_BxG[:, g], mask_BxG[:, g])
                metrics[f"{name}/{score}"] = mean
        return metrics

    return evaluate
