"""REINFORCE, RLOO and the GRPO family (paper section 4), from one loss.

for every step:
    x_1 .. x_B ~ prompts;  y_bg ~ pi^(1/temperature)(. | x_b),  g = 1 .. G
    A_bg = (reward_bg - baseline) / (std + eps)
    repeat num_iterations times, over num_minibatches parts of the prompts:
        params <- Adam(params, grad of the clipped surrogate of A and pi / pi_old)
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from parity_jax.blocks import at_most
from parity_jax.config import require, require_default, require_finite, require_positive
from parity_jax.evaluate import Evaluate
from parity_jax.gradient import response_gradient, trained_log_probs
from parity_jax.hypers import Hypers
from parity_jax.metrics import Mean, Metrics
from parity_jax.models.model import Model, ModelConfig
from parity_jax.objectives import (
    Baseline,
    KlEstimator,
    Level,
    LossType,
    PolicyTarget,
    Spread,
    advantages,
    is_zero_std,
    kl_estimate,
    policy_loss,
    policy_target,
)
from parity_jax.optim import OptimizerConfig
from parity_jax.policy import TokenScores
from parity_jax.responses import has_ended
from parity_jax.stages.rollout import (
    Rollout,
    RolloutConfig,
    Sampler,
    check_noise,
    make_sampler,
    rollout_metrics,
)
from parity_jax.stages.stage import Stage, StageConfig, StepKeys, evaluator, make_init
from parity_jax.tasks.task import Task
from parity_jax.types import Data, StageState


@dataclass(frozen=True)
class PolicyGradientConfig(StageConfig):
    """REINFORCE and the GRPO family from one loss; names as in TRL (paper section 4).

    The defaults are GRPO. `reinforce(..)`, `rloo(..)`, `dr_grpo(..)`, `dapo(..)` and
    `gspo(..)` below are the published combinations.
    """

    kind: ClassVar[str] = "policy_gradient"
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    baseline: Baseline = "group"
    scale_rewards: Spread = "group"  # divide by whose std
    std_ddof: int = 0  # 0: population, 1: sample standard deviation
    std_eps: float = 1e-4  # added to the standard deviation
    loss_type: LossType = "grpo"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    importance_sampling_level: Level = "token"
    num_iterations: int = 1  # mu: passes over each batch of rollouts
    num_minibatches: int = 1  # optimizer steps of a pass; groups stay whole
    kl_estimator: KlEstimator = "none"
    kl_in: Literal["loss", "reward"] = "loss"
    mask_truncated_completions: bool = False  # responses without EOS carry no loss
    zero_std_groups: Literal["keep", "drop", "resample"] = "keep"
    max_resamples: int = 4  # further batches drawn per step to replace such groups

    def __post_init__(self) -> None:
        require_positive(self, "num_iterations", "num_minibatches", "max_resamples")
        require(self.std_ddof in (0, 1), "std_ddof", self.std_ddof, "must be 0 or 1")
        require_finite(self, "std_eps")
        is_divided = self.scale_rewards != "none"
        off = "with scale_rewards='none'"
        require_default(self, is_divided, off, "std_ddof", "std_eps")
        is_felt = self.kl_estimator != "none"
        require_default(self, is_felt, "with kl_estimator='none'", "kl_in")
        is_resampled, off = self.zero_std_groups == "resample", self.zero_std_groups
        otherwise = f"with zero_std_groups={off!r}"
        require_default(self, is_resampled, otherwise, "max_resamples")
        prompts, parts = self.rollout.num_prompts, self.num_minibatches
        allowed = f"must divide rollout.num_prompts={prompts}"
        require(prompts % parts == 0, "num_minibatches", parts, allowed)
        self._refuse_degenerate()

    def _refuse_degenerate(self) -> None:
        """Combinations that are known to explode or to do nothing."""
        groups = self.rollout.num_generations
        needs_group = (
            self.baseline in ("group", "leave_one_out")
            or self.scale_rewards == "group"
            or self.zero_std_groups != "keep"
        )
        allowed = "must be at least 2 for a baseline, std or filter within the group"
        enough = groups >= 2 or not needs_group
        require(enough, "rollout.num_generations", groups, allowed)
        needs_batch = "batch" in (self.baseline, self.scale_rewards)
        allowed = "must be at least 2 for a baseline or std of a batch of one prompt"
        enough = self.rollout.num_responses >= 2 or not needs_batch
        require(enough, "rollout.num_generations", groups, allowed)
        allowed = (
            "must be 'none' with baseline='leave_one_out': one success among G gives "
            "the others a tiny std and the advantage explodes"
        )
        explodes = self.baseline == "leave_one_out" and self.scale_rewards != "none"
        require(not explodes, "scale_rewards", self.scale_rewards, allowed)
        idle = (
            self.kl_estimator == "k1" and self.kl_in == "loss" and self.num_updates == 1
        )
        allowed = (
            "does nothing in the loss on-policy, its expected gradient is zero: "
            "use k2 or k3, or kl_in='reward'"
        )
        require(not idle, "kl_estimator", self.kl_estimator, allowed)
        otherwise = "with one update per rollout: every ratio is 1 there"
        require_default(
            self, self.num_updates > 1, otherwise, "importance_sampling_level"
        )

    @property
    def num_updates(self) -> int:
        """Optimizer steps on the responses of one rollout."""
        return self.num_iterations * self.num_minibatches

    @property
    def sequences_per_step(self) -> int:
        return self.rollout.num_responses

    def make(self, task: Task, model: Model, evaluate: Evaluate) -> Stage:
        return make_policy_gradient(self, task, model, evaluate)

    def check(self, model: ModelConfig, hypers: Hypers) -> None:
        check_noise(self.rollout, hypers)
        idle = self.rollout.num_generations == 2 and self.scale_rewards == "group"
        allowed = (
            "has no size with num_generations=2 and scale_rewards='group': the std of "
            "two rewards divides it away; use more generations or scale_rewards='none'"
        )
        price = hypers.length_price
        require(price == 0 or not idle, "length_price", price, allowed)
        allowed = "must be 0 with kl_estimator='none', which leaves the divergence out"
        is_felt = self.kl_estimator != "none"
        require(is_felt or hypers.beta == 0, "beta", hypers.beta, allowed)


def reinforce(**overrides: Any) -> PolicyGradientConfig:
    """REINFORCE: plain rewards, token log-probabilities summed over each response."""
    preset: dict[str, Any] = dict(
        baseline="none", scale_rewards="none", loss_type="reinforce"
    )
    return PolicyGradientConfig(**preset | overrides)


def rloo(**overrides: Any) -> PolicyGradientConfig:
    """RLOO: the baseline of a response is the mean reward of its group's others."""
    return reinforce(baseline="leave_one_out", **overrides)


def dr_grpo(**overrides: Any) -> PolicyGradientConfig:
    """Dr. GRPO: group mean without std, constant length normalisation."""
    preset: dict[str, Any] = {"scale_rewards": "none", "loss_type": "dr_grpo"}
    return PolicyGradientConfig(**preset | overrides)


def dapo(**overrides: Any) -> PolicyGradientConfig:
    """DAPO: token-level loss, truncated and zero-std rows left out.

    Its clip-higher is hypers.epsilon_high = 0.28.
    """
    preset: dict[str, Any] = dict(
        loss_type="dapo", mask_truncated_completions=True, zero_std_groups="resample"
    )
    return PolicyGradientConfig(**preset | overrides)


def gspo(**overrides: Any) -> PolicyGradientConfig:
    """GSPO: one ratio per response, four updates per rollout as in its paper.

    Its clip is about epsilon = 3e-4, epsilon_high = 4e-4.
    """
    preset: dict[str, Any] = dict(importance_sampling_level="sequence")
    return PolicyGradientConfig(**preset | {"num_minibatches": 4} | overrides)


class Minibatch(NamedTuple):
    """What one optimizer step reads; every leaf has the prompts in front."""

    rollout: Rollout
    mask: Array  # BxGxT, tokens that carry loss
    advantage: Array  # BxG
    # BxGxT of the passes that are trained, which in bfloat16 are not quite the
    # sampler's; None with one update: the policy is the one that sampled
    old_log_prob: Array | None
    reference_log_prob: Array | None  # BxGxT


# They clip the ratio of policies, which is 1 in the only update of a rollout.
UNFELT = dict(epsilon=0.2, epsilon_high=0.2, delta=1e6)


def make_policy_gradient(
    cfg: PolicyGradientConfig, task: Task, model: Model, evaluate: Evaluate
) -> Stage:
    """The stage of a config; ConfigError for rewards that do not exist."""
    optimizer = cfg.optimizer.make()
    sampler = make_sampler(cfg.rollout, task, model)
    short_len = task.format.short_len

    def prepare(state: StageState, rollout: Rollout) -> Minibatch:
        """Advantages and the mask of the tokens that carry loss."""
        reward_BxG, policies = rollout.reward, {}
        mask, temperature = rollout.response.mask, state.hypers.temperature
        if cfg.num_updates > 1:
            policies["old"] = state.params
        if cfg.kl_estimator != "none":
            policies["reference"] = state.reference
        read = (rollout.prompt, rollout.response, short_len, temperature)
        known = trained_log_probs(policies, model, *read) if policies else {}
        old, reference = known.get("old"), known.get("reference")
        if reference is not None and cfg.kl_in == "reward":
            kl = kl_estimate(rollout.response.log_prob, reference, cfg.kl_estimator)
            reward_BxG -= state.hypers.beta * jnp.where(mask, kl, 0).sum(-1)
        if cfg.mask_truncated_completions:
            mask &= has_ended(rollout.response.token, task.format)[..., None]
        if cfg.zero_std_groups != "keep":
            mask &= ~is_zero_std(rollout.reward)[:, None, None]
        advantage_BxG = advantages(
            reward_BxG, cfg.baseline, cfg.scale_rewards, cfg.std_ddof, cfg.std_eps
        )
        return Minibatch(rollout, mask, advantage_BxG, old, reference)

    def update(
        state: StageState, part: Minibatch, rollout_tokens: Array
    ) -> tuple[StageState, Metrics]:
        response, hypers = part.rollout.response, state.hypers
        if cfg.num_updates == 1:
            hypers = replace(hypers, **UNFELT)
        target = policy_target(
            response.token,
            part.mask,
            part.old_log_prob,
            part.reference_log_prob,
            part.advantage,
            rollout_tokens,
            cfg.loss_type,
        )

        def loss_fn(scores: TokenScores, target: PolicyTarget) -> tuple[Array, Metrics]:
            return policy_loss(
                scores,
                target,
                hypers,
                cfg.importance_sampling_level,
                cfg.kl_estimator,
                cfg.kl_in == "loss",
            )

        prompt, temperature = part.rollout.prompt, state.hypers.temperature
        grads, loss, metrics = response_gradient(
            loss_fn, model, state.params, prompt, target, short_len, temperature
        )
        state, grad_norm = optimizer.apply(state, grads)
        means = {"loss": Mean.over(loss), "grad_norm": Mean.over(grad_norm)}
        return state, metrics | means

    def step(state: StageState, data: Data) -> tuple[StageState, Metrics]:
        rollout, sampled, num_draws = draw_rollout(cfg, sampler, state, data)
        batch = prepare(state, rollout)
        carries_loss_B = batch.mask.any((1, 2))
        rollout_tokens = batch.mask.sum() / cfg.num_minibatches
        parts = jax.tree.map(
            lambda x: x.reshape(cfg.num_minibatches, -1, *x.shape[1:]), batch
        )

        def one_pass(state: StageState, _: None) -> tuple[StageState, Metrics]:
            return jax.lax.scan(lambda s, p: update(s, p, rollout_tokens), state, parts)

        state, metrics = jax.lax.scan(one_pass, state, length=cfg.num_iterations)
        metrics = jax.tree.map(jnp.sum, metrics)  # (total, count) of all updates
        metrics |= sampled | {
            "effective_rollout_ratio": Mean.over(carries_loss_B.mean() / num_draws),
            "advantage_abs": Mean.over(jnp.abs(batch.advantage)),
            "updates": Mean.over(jnp.float32(cfg.num_updates)),
        }
        return state._replace(step=state.step + 1), metrics

    return Stage(
        init=make_init(model, optimizer.transformation, cfg.kl_estimator != "none"),
        step=step,
        evaluate=evaluator(evaluate),
    )


def draw_rollout(
    cfg: PolicyGradientConfig, sampler: Sampler, state: StageState, data: Data
) -> tuple[Rollout, Metrics, Array]:
    """The rollout that a step trains on, the metrics of all that it drew, their number.

    zero_std_groups="resample" draws up to max_resamples further batches; their groups
    that carry signal take the places of those that do not. The metrics are of every
    batch; `trained/..` are those of the groups that were chosen.
    """
    keys, task = StepKeys.of(state), sampler.task
    rollout = sampler(state, keys, data)
    metrics = rollout_metrics(rollout, task)
    if cfg.zero_std_groups != "resample":
        return rollout, metrics, jnp.float32(1)

    def wanting(carry: tuple[Rollout, Metrics, Array]) -> Array:
        rollout, _, num_draws = carry
        return is_zero_std(rollout.reward).any() & (num_draws <= cfg.max_resamples)

    def replace(carry: tuple[Rollout, Metrics, Array]) -> tuple:
        old, metrics, num_draws = carry
        again = StepKeys(*(jax.random.fold_in(k, num_draws) for k in keys))
        new = sampler(state, again, data, is_further=True)
        metrics = jax.tree.map(jnp.add, metrics, rollout_metrics(new, task))
        return fill_groups(old, new), metrics, num_draws + 1

    first = (rollout, metrics, jnp.int32(1))
    with at_most(cfg.max_resamples):
        rollout, metrics, num_draws = jax.lax.while_loop(wanting, replace, first)
    for name in ("rollouts", "tokens"):  # of the step, whatever the number of draws
        metrics[name] = Mean(metrics[name].total, jnp.float32(1))
    trained = rollout_metrics(rollout, task)
    for name in ("reward", "accuracy", "p_long", "frac_reward_zero_std"):
        metrics[f"trained/{name}"] = trained[name]
    return rollout, metrics, num_draws.astype(jnp.float32)


def fill_groups(old: Rollout, new: Rollout) -> Rollout:
    """`old` with its zero-std groups replaced by groups of `new` that are not."""
    is_empty_B, is_useful_B = is_zero_std(old.reward), ~is_zero_std(new.reward)
    rank_B = (
        jnp.cumsum(is_empty_B) - 1
    )  # the empty place b takes useful group rank_B[b]
    source_B = jnp.argsort(~is_useful_B, stable=True)[rank_B]
    is_filled_B = is_empty_B & (rank_B < is_useful_B.sum())

    def fill(old: Array, new: Array) -> Array:
        is_filled = is_filled_B.reshape(-1, *[1] * (old.ndim - 1))
        return jnp.where(is_filled, new[source_B], old)

    return jax.tree.map(fill, old, new)
