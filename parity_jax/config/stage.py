"""Training algorithms and their published combinations."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from parity_jax.config.checks import require, require_positive


@dataclass(frozen=True)
class PretrainConfig:
    """Next-token prediction on fresh demonstrations (paper section 3)."""

    kind: ClassVar[str] = "pretrain"
    batch_size: int = 256
    weight_decay: float = 0.0
    # The learning rate falls along a cosine over decay_steps (0: it is constant) to
    # final_lr_ratio of itself, and stays there. A constant rate of 1e-3 leaves noise in
    # the logits that is as large as the margin at p_cot = 0.25.
    decay_steps: int = 0
    final_lr_ratio: float = 0.05

    def __post_init__(self) -> None:
        require_positive(self, "batch_size")
        allowed = "must be 0 (constant learning rate) or positive"
        require(self.decay_steps >= 0, "decay_steps", self.decay_steps, allowed)
        inside = 0 <= self.final_lr_ratio <= 1
        require(inside, "final_lr_ratio", self.final_lr_ratio, "must be in [0, 1]")
        allowed = "must be >= 0"
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, allowed)


@dataclass(frozen=True)
class RolloutConfig:
    """What post-training samples and how it is rewarded."""

    num_prompts: int = 64  # prompts of a step, B
    num_generations: int = 8  # responses of a prompt, G
    # Names of the task's rewards, or `package.module:function` of your own with the
    # signature of `types.Reward`; what is trained on is their weighted sum.
    rewards: tuple[str, ...] = ("e2e",)
    reward_weights: tuple[float, ...] = (1.0,)
    length_price: Literal["additive", "multiplicative"] = "additive"
    num_unique_prompts: int = 0  # size of a fixed pool of prompts; 0: always fresh

    def __post_init__(self) -> None:
        require_positive(self, "num_prompts", "num_generations")
        require(bool(self.rewards), "rewards", (), "must name at least one reward")
        allowed = f"must give one weight for each of rewards={self.rewards}"
        matches = len(self.reward_weights) == len(self.rewards)
        require(matches, "reward_weights", self.reward_weights, allowed)
        pool = self.num_unique_prompts
        require(pool >= 0, "num_unique_prompts", pool, "must be 0 (fresh) or positive")


@dataclass(frozen=True)
class PolicyGradientConfig:
    """REINFORCE and the GRPO family from one loss; names as in TRL (paper section 4).

    The defaults are GRPO. `reinforce(..)`, `rloo(..)`, `dr_grpo(..)`, `dapo(..)` and
    `gspo(..)` below are the published combinations.
    """

    kind: ClassVar[str] = "policy_gradient"
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    baseline: Literal["none", "batch", "group", "leave_one_out"] = "group"
    scale_rewards: Literal["none", "batch", "group"] = "group"  # divide by whose std
    std_ddof: int = 0  # 0: population, 1: sample standard deviation
    std_eps: float = 1e-4  # added to the standard deviation
    loss_type: Literal["grpo", "bnpo", "dapo", "dr_grpo", "reinforce"] = "grpo"
    optimizer: Literal["adam", "sgd"] = "adam"
    importance_sampling_level: Literal["token", "sequence"] = "token"
    num_iterations: int = 1  # mu: passes over each batch of rollouts
    num_minibatches: int = 1  # optimizer steps of a pass; groups stay whole
    kl_estimator: Literal["none", "k1", "k2", "k3"] = "none"
    kl_in: Literal["loss", "reward"] = "loss"
    mask_truncated_completions: bool = False  # responses without EOS carry no loss
    zero_std_groups: Literal["keep", "drop", "resample"] = "keep"
    max_resamples: int = 4  # further batches drawn per step to replace such groups

    def __post_init__(self) -> None:
        require_positive(self, "num_iterations", "num_minibatches", "max_resamples")
        require(self.std_ddof in (0, 1), "std_ddof", self.std_ddof, "must be 0 or 1")
        require(self.std_eps >= 0, "std_eps", self.std_eps, "must be >= 0")
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
        require(groups >= 2 or not needs_group, "num_generations", groups, allowed)
        allowed = (
            "must be 'none' with baseline='leave_one_out': one success among G gives "
            "the others a tiny std and the advantage explodes"
        )
        explodes = self.baseline == "leave_one_out" and self.scale_rewards != "none"
        require(not explodes, "scale_rewards", self.scale_rewards, allowed)
        idle = (
            self.kl_estimator == "k1"
            and self.kl_in == "loss"
            and self.num_iterations * self.num_minibatches == 1
        )
        allowed = (
            "does nothing in the loss on-policy, its expected gradient is zero: "
            "use k2 or k3, or kl_in='reward'"
        )
        require(not idle, "kl_estimator", self.kl_estimator, allowed)


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
    """GSPO: one ratio per response; its clip is about epsilon = 3e-4, high = 4e-4."""
    return PolicyGradientConfig(importance_sampling_level="sequence", **overrides)


@dataclass(frozen=True)
class StarConfig:
    """STaR (paper section 4); one step is one round."""

    kind: ClassVar[str] = "star"
    rollout: RolloutConfig = field(
        default_factory=lambda: RolloutConfig(num_prompts=2048, num_generations=1)
    )
    batch_size: int = 64
    num_epochs: int = 3  # passes over the kept samples of a round
    restart: bool = False  # every round starts from the parameters of the parent run
    decay: bool = False  # the learning rate falls linearly to 0 over each round

    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "batch_size", "num_epochs")
        samples = self.rollout.num_prompts * self.rollout.num_generations
        divides = samples % self.batch_size == 0
        allowed = f"must divide the {samples} samples of a round"
        require(divides, "batch_size", self.batch_size, allowed)
        allowed = "must be >= 0"
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, allowed)


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
            value = getattr(self, name)
            require(value >= 0, name, value, "must be 0 (the paper's) or positive")


@dataclass(frozen=True)
class LinearPretrainConfig:
    """Next-token prediction of the linear model (paper section 6)."""

    kind: ClassVar[str] = "linear_pretrain"
    sgd: SgdConfig = field(default_factory=SgdConfig)
    num_updates: int = 1000  # of one step

    def __post_init__(self) -> None:
        require_positive(self, "num_updates")


@dataclass(frozen=True)
class LinearStarConfig:
    """STaR on the linear model (paper section 6); one step is one round."""

    kind: ClassVar[str] = "linear_star"
    rollout: RolloutConfig = field(
        default_factory=lambda: RolloutConfig(num_prompts=16384, num_generations=1)
    )
    sgd: SgdConfig = field(default_factory=SgdConfig)
    num_updates: int = 10_000  # of one round, on draws from the kept samples

    def __post_init__(self) -> None:
        require_positive(self, "num_updates")


StageConfig = (
    PretrainConfig
    | PolicyGradientConfig
    | StarConfig
    | LinearPretrainConfig
    | LinearStarConfig
)
