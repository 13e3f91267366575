"""SGD of the linear model: next-token prediction, and STaR (paper section 6).

for t = 1 .. T:                               (every head alone, from w^(1) = 0)
    (x, y) ~ data
    first, gate:  w <- w - eta_t (grad ln(1 + exp(-y f_w)) + lambda w)
                  with eta_t = 1 / (lambda t)
    chain:        if y is long, the same for heads l >= 2, with t_long in place of t
return the average of the iterates w^(1) .. w^(T)

lambda is hypers.ridge. `SgdConfig` can depart from this for speed: gradients averaged
over a batch, first steps tamed by eta_t = 1 / (lambda t + 1/s), later iterates
weighing more. Large steps suit the chain heads, whose clean labels leave no gradient
noise; at the first head and the gate, whose labels are random, they bias the average.
The data are fresh demonstrations (pre-training) or the kept samples of a STaR round,
which starts again from w = 0 as in the paper's Theorem 2. `params` is the average.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.config import (
    ConfigError,
    kind_of,
    require,
    require_finite,
    require_positive,
)
from parity_jax.evaluate import Evaluate
from parity_jax.hypers import Hypers
from parity_jax.metrics import Mean, Metrics, masked_mean
from parity_jax.models.linear import (
    LinearConfig,
    LinearParams,
    chain_logits,
    exact_policy,
    first_logit,
    gate_logit,
    greedy_signs,
    head_terms,
    prompt_signs,
    zero_params,
)
from parity_jax.models.model import Model, ModelConfig
from parity_jax.stages.rollout import (
    RolloutConfig,
    check_noise,
    make_sampler,
    rollout_metrics,
)
from parity_jax.stages.stage import Stage, StageConfig, StepKeys, evaluator
from parity_jax.stages.star import check_kept, flatten_groups, is_kept
from parity_jax.tasks.parity import token_signs
from parity_jax.tasks.task import Task
from parity_jax.types import (
    NOTHING_KEPT,
    RUNNING,
    Data,
    Key,
    Params,
    Prompt,
    StageState,
)

MAX_POWER = 1_000_000  # of an iterate's weight in the average


@dataclass(frozen=True)
class SgdConfig:
    """Updates of the linear model's SGD; the defaults are the paper's algorithm."""

    batch_size: int = 1  # examples whose gradients one update averages
    max_step_size: float = 0.0  # s in eta_t = 1 / (ridge t + 1/s); 0: 1 / (ridge t)
    max_chain_step_size: float = 0.0  # the same for the chain heads
    average_power: int = 0  # iterate t weighs like t^power in the average; 0: all alike

    def __post_init__(self) -> None:
        require_positive(self, "batch_size")
        for name in ("max_step_size", "max_chain_step_size", "average_power"):
            require_finite(self, name)
        power, allowed = self.average_power, f"must be at most {MAX_POWER}"
        require(power <= MAX_POWER, "average_power", power, allowed)


@dataclass(frozen=True)
class LinearPretrainConfig(StageConfig):
    """Next-token prediction of the linear model (paper section 6)."""

    kind: ClassVar[str] = "linear_pretrain"
    starts_from_parents: ClassVar[bool] = False  # its SGD begins at w = 0
    sgd: SgdConfig = field(default_factory=SgdConfig)
    num_updates: int = 1000  # of one step

    def __post_init__(self) -> None:
        require_positive(self, "num_updates")

    @property
    def sequences_per_step(self) -> int:
        return self.num_updates * self.sgd.batch_size

    def make(self, task: Task, model: Model, evaluate: Evaluate) -> Stage:
        return make_linear_pretrain(self, task, model, evaluate)

    def check(self, model: ModelConfig, hypers: Hypers) -> None:
        check_linear(model)


@dataclass(frozen=True)
class LinearStarConfig(StageConfig):
    """STaR on the linear model (paper section 6); one step is one round."""

    kind: ClassVar[str] = "linear_star"
    rollout: RolloutConfig = field(
        default_factory=lambda: RolloutConfig(num_prompts=16384, num_generations=1)
    )
    sgd: SgdConfig = field(default_factory=SgdConfig)
    num_updates: int = 10_000  # of one round, on draws from the kept samples

    def __post_init__(self) -> None:
        require_positive(self, "num_updates")

    @property
    def sequences_per_step(self) -> int:
        return self.rollout.num_responses

    def make(self, task: Task, model: Model, evaluate: Evaluate) -> Stage:
        return make_linear_star(self, task, model, evaluate)

    def check(self, model: ModelConfig, hypers: Hypers) -> None:
        check_linear(model)
        check_kept(self.rollout, hypers)
        check_noise(self.rollout, hypers)


def check_linear(model: ModelConfig) -> None:
    """ConfigError unless the model is the linear one: only it has these heads."""
    if not isinstance(model, LinearConfig):
        allowed = "must be 'linear' for this stage"
        raise ConfigError("model.kind", kind_of(type(model)), allowed)


class Examples(NamedTuple):
    """Prompts and responses that SGD trains on, as signs; 0 where no bit is."""

    x: Array  # B x d
    y: Array  # B x d


class Sgd(NamedTuple):
    """Where SGD stands; the average of the iterates is what it returns."""

    weights: LinearParams  # w^(t+1), t updates after w^(1) = 0
    average: LinearParams  # of w^(1) .. w^(t)
    t: LinearParams  # int32 scalars, updates of each head


def as_examples(prompt: Prompt, response_BxT: Array) -> Examples:
    """Tokens as signs, separator and last token (never a bit) left out."""
    y_BxT = token_signs(response_BxT[:, :-1]).astype(jnp.float32)
    return Examples(prompt_signs(prompt), y_BxT)


def head_losses(params: LinearParams, examples: Examples) -> LinearParams:
    """Mean logistic loss of each head; chain heads (their sum) over long examples."""
    x_BxL, y_BxT = examples
    terms = head_terms(params, x_BxL)
    is_long_B = y_BxT[:, 1] != 0
    go_on_B = jnp.where(is_long_B, 1.0, -1.0)
    gate_B = gate_logit(terms, y_BxT[:, :1])[:, 0]
    bit_BxT = chain_logits(params, terms, y_BxT[:, None, :-1])[:, 0]
    chain_B = jax.nn.softplus(-y_BxT[:, 1:] * bit_BxT).sum(-1)
    return LinearParams(
        first=jax.nn.softplus(-y_BxT[:, 0] * first_logit(params, x_BxL)).mean(),
        gate=jax.nn.softplus(-go_on_B * gate_B).mean(),
        chain=masked_mean(chain_B, is_long_B),
    )


def zero_sgd(num_bits: int) -> Sgd:
    """Before the first update."""
    weights = zero_params(num_bits)
    return Sgd(weights, weights, jax.tree.map(lambda w: jnp.int32(0), weights))


def sgd_update(
    cfg: SgdConfig, ridge: Array, sgd: Sgd, examples: Examples
) -> tuple[Sgd, Array]:
    """One update of all heads, and the next-token loss per sequence before it."""

    def total(weights: LinearParams) -> tuple[Array, LinearParams]:
        losses = head_losses(weights, examples)
        return losses.first + losses.gate + losses.chain, losses

    grads, losses = jax.grad(total, has_aux=True)(sgd.weights)
    p_long = (examples.y[:, 1] != 0).mean()
    has_data = LinearParams(jnp.bool(True), jnp.bool(True), p_long > 0)
    t = jax.tree.map(jnp.add, sgd.t, has_data)
    caps = (cfg.max_step_size, cfg.max_step_size, cfg.max_chain_step_size)
    offset = LinearParams(*(jnp.float32(1 / cap if cap else 0) for cap in caps))
    power = cfg.average_power

    def moved(has_data: Array, offset: Array, w: Array, grad: Array, t: Array) -> Array:
        step_size = 1 / (ridge * t + offset)
        return jnp.where(has_data, w - step_size * (grad + ridge * w), w)

    def averaged(has_data: Array, w: Array, mean: Array, t: Array) -> Array:
        new = mean + (w - mean) * (1 + power) / (t + power)
        return jnp.where(has_data, new, mean)

    weights = jax.tree.map(moved, has_data, offset, sgd.weights, grads, t)
    average = jax.tree.map(averaged, has_data, sgd.weights, sgd.average, t)
    return Sgd(weights, average, t), losses.first + losses.gate + p_long * losses.chain


def run_sgd(
    cfg: SgdConfig,
    ridge: Array,
    sgd: Sgd,
    drawn: Any,
    examples_of: Callable[[Any], Examples],
) -> tuple[Sgd, Mean]:
    """One update for each slice of `drawn`, and the mean loss over them."""

    def update(sgd: Sgd, part: Any) -> tuple[Sgd, Array]:
        return sgd_update(cfg, ridge, sgd, examples_of(part))

    sgd, loss_U = jax.lax.scan(update, sgd, drawn)
    return sgd, Mean.over(loss_U)


def make_linear_pretrain(
    cfg: LinearPretrainConfig, task: Task, model: Model, evaluate: Evaluate
) -> Stage:
    """One step is num_updates updates on fresh demonstrations."""

    def step(state: StageState, data: Data) -> tuple[StageState, Metrics]:
        def draw(key: Key) -> Examples:
            k_prompt, k_demonstration = jax.random.split(key)
            prompt = task.sample_prompts(k_prompt, cfg.sgd.batch_size, data.task)
            batch = task.demonstrate(k_demonstration, prompt, state.hypers, data.task)
            return as_examples(batch.prompt, batch.response)

        keys = jax.random.split(StepKeys.of(state).data, cfg.num_updates)
        examples = jax.vmap(draw)(keys)
        sgd, loss = run_sgd(
            cfg.sgd, state.hypers.ridge, state.opt_state, examples, lambda part: part
        )
        state = state._replace(step=state.step + 1, params=sgd.average, opt_state=sgd)
        return state, {"loss": loss}

    return Stage(
        init=make_sgd_init(model, task.prompt_len - 1),
        step=step,
        evaluate=with_exact_scores(task, evaluate),
    )


def make_linear_star(
    cfg: LinearStarConfig, task: Task, model: Model, evaluate: Evaluate
) -> Stage:
    """One step is one round: sample, keep what is right, refit from w = 0."""
    sampler = make_sampler(cfg.rollout, task, model)

    def step(state: StageState, data: Data) -> tuple[StageState, Metrics]:
        keys = StepKeys.of(state)
        rollout = sampler(state, keys, data)
        samples = flatten_groups(rollout)
        kept_N, token_NxT = is_kept(samples), samples.response.token[:, 0]
        num_kept = kept_N.sum()
        order_N = jnp.argsort(~kept_N)  # the kept ones in front

        shape = (cfg.num_updates, cfg.sgd.batch_size)
        top = jnp.maximum(num_kept, 1)
        place_UxB = jax.random.randint(keys.update, shape, 0, top)

        def examples_of(place_B: Array) -> Examples:
            row_B = order_N[place_B]
            prompt = Prompt(samples.prompt.token[row_B])
            return as_examples(prompt, token_NxT[row_B])

        start = zero_sgd(task.prompt_len - 1)
        sgd, loss = run_sgd(cfg.sgd, state.hypers.ridge, start, place_UxB, examples_of)
        is_long_NxG = task.is_long(samples.response.token)
        metrics = rollout_metrics(rollout, task) | {
            "loss": loss,
            "kept_ratio": Mean.over(kept_N),
            "kept_p_long": Mean.over(is_long_NxG, kept_N[:, None]),
            "updates": Mean.over(jnp.float32(cfg.num_updates)),
        }
        state = state._replace(
            step=state.step + 1,
            params=sgd.average,
            opt_state=sgd,
            status=jnp.where(num_kept == 0, NOTHING_KEPT, state.status),
        )
        return state, metrics

    return Stage(
        init=make_sgd_init(model, task.prompt_len - 1),
        step=step,
        evaluate=with_exact_scores(task, evaluate),
    )


def make_sgd_init(
    model: Model, num_bits: int
) -> Callable[[Key, Hypers, Params | None], StageState]:
    """init(key, hypers, params=None); SGD itself always starts from w = 0."""

    def init(key: Key, hypers: Hypers, params: Params | None = None) -> StageState:
        k_init, k_steps = jax.random.split(key)
        return StageState(
            key=k_steps,
            step=jnp.int32(0),
            params=model.init(k_init) if params is None else params,
            opt_state=zero_sgd(num_bits),
            hypers=hypers,
            status=jnp.int32(RUNNING),
            reference=None,
        )

    return init


NUM_SCORED = 1024  # inputs that exact scores average over: all of them, if so few


def scored_inputs(key: Key, task: Task) -> Array:
    """All 2^d inputs if there are at most NUM_SCORED, else so many random ones, Bxd."""
    d = task.prompt_len - 1
    if 2**d > NUM_SCORED:
        return prompt_signs(task.sample_prompts(key, NUM_SCORED, task.data))
    number_Bx1, bit_1xL = jnp.arange(2**d)[:, None], jnp.arange(d)[None]
    return 1.0 - 2.0 * (number_Bx1 >> bit_1xL & 1)


def with_exact_scores(
    task: Task, evaluate: Evaluate
) -> Callable[[StageState, Data], Metrics]:
    """Evaluation by sampling, and `exact/<score>` without."""
    sampled = evaluator(evaluate)

    def scores(state: StageState, data: Data) -> Metrics:
        k_input = jax.random.fold_in(StepKeys.of(state).evaluate, 1)
        x_BxL = scored_inputs(k_input, task)
        exact = exact_scores(state.params, x_BxL, state.hypers.p_cot)
        return sampled(state, data) | exact

    return scores


def exact_scores(params: LinearParams, x_BxL: Array, p_cot: Array) -> Metrics:
    """The heads' probabilities averaged over inputs, and their largest errors.

    first, gate_right, gate_wrong, chain_error    means of those of `ExactPolicy`
    p_long, p_short      probabilities of the right chain, and of (parity, EOS)
    *_max_error          over inputs, against the mixture D(p_cot) without noise
    margin_mean, margin_std    the gate's logit after y_1 = x_1, over inputs
    greedy_long, greedy_right  greedy decoding by signs: share that goes on, that is the
                               right chain
    """
    policy = exact_policy(params, x_BxL)
    is_long_B, is_right_B = greedy_signs(params, x_BxL)
    true: dict[str, tuple[Array, Array | float]] = {
        "first": (policy.first, (1 + p_cot) / 2),
        "gate_right": (policy.gate_right, 2 * p_cot / (1 + p_cot)),
        "gate_wrong": (policy.gate_wrong, 0.0),
        "chain_error": (policy.chain_error, 0.0),
        "p_long": (policy.long, p_cot),
        "p_short": (policy.short, (1 - p_cot) / 2),
    }
    values = {name: each.mean() for name, (each, _) in true.items()}
    for name, (each, ideal) in true.items():
        values[f"{name}_max_error"] = jnp.abs(each - ideal).max()
    values |= {
        "margin_mean": policy.gate_margin.mean(),
        "margin_std": policy.gate_margin.std(),
        "greedy_long": is_long_B.mean(),
        "greedy_right": is_right_B.mean(),
    }
    return {f"exact/{name}": Mean.over(value) for name, value in values.items()}
