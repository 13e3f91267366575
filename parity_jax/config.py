"""Static configuration: frozen, hashable dataclasses, strict from end to end.

What changes shapes or the program stands here; what is only a number stands in
`types.Hypers`. A bad value raises `ConfigError`: one line with field, value and what is
allowed, before anything is compiled or written.
"""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from flax.core import FrozenDict
from ml_collections import ConfigDict

from parity_jax.types import Hypers


class ConfigError(ValueError):
    """One line: which field, which value, what is allowed."""

    def __init__(self, name: str, value: Any, allowed: str):
        super().__init__(f"{name}={value!r}: {allowed}")
        self.name, self.value, self.allowed = name, value, allowed

    def under(self, parent: str) -> "ConfigError":
        return ConfigError(f"{parent}.{self.name}", self.value, self.allowed)


def require(condition: bool, name: str, value: Any, allowed: str) -> None:
    """ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(name, value, allowed)


def require_positive(config: Any, *names: str) -> None:
    """ConfigError unless all these fields are at least 1."""
    for name in names:
        value = getattr(config, name)
        require(value >= 1, name, value, "must be at least 1")


def unknown_name(name: str, value: Any, valid: typing.Iterable[str]) -> ConfigError:
    """Error for a field that does not exist, with the nearest one that does."""
    return ConfigError(name, value, f"unknown field; {_nearest(name, valid)}")


def unknown_value(name: str, value: str, valid: typing.Iterable[str]) -> ConfigError:
    """Error for a value that is none of the valid ones, with the nearest of them."""
    return ConfigError(name, value, f"unknown; {_nearest(value, valid)}")


def _nearest(name: str, valid: typing.Iterable[str]) -> str:
    valid = sorted(valid)
    near = difflib.get_close_matches(str(name), valid, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}valid: {', '.join(valid)}"


# Inclusive bounds of every field of Hypers; None is unbounded.
HYPER_BOUNDS: dict[str, tuple[float, float | None]] = {
    "p_cot": (0, 1),
    "p_leap": (0, 1),
    "emit_noise": (0, 1),
    "step_noise": (0, 1),
    "short_noise": (0, 1),
    "learning_rate": (0, None),
    "temperature": (1e-3, None),
    "epsilon": (0, 1),
    "epsilon_high": (0, None),
    "delta": (1, None),
    "beta": (0, None),
    "entropy_coef": (0, None),
    "length_price": (0, None),
    "ridge": (1e-8, None),
    "false_positive": (0, 1),
    "false_negative": (0, 1),
}


def check_hyper(name: str, value: float) -> None:
    """ConfigError unless the value is within HYPER_BOUNDS."""
    low, high = HYPER_BOUNDS[name]
    allowed = f"must be in [{low}, {high}]" if high is not None else f"must be >= {low}"
    inside = low <= value and (high is None or value <= high)
    require(inside, name, value, allowed)


def check_hypers(hypers: Hypers) -> None:
    """ConfigError unless all numbers are within bounds, alone and together."""
    for f in dataclasses.fields(hypers):
        check_hyper(f.name, getattr(hypers, f.name))
    share = hypers.p_cot + hypers.p_leap
    require(share <= 1, "p_leap", hypers.p_leap, "p_cot + p_leap must be at most 1")


@dataclass(frozen=True)
class ParityConfig:
    """Parity of num_bits bits."""

    kind: ClassVar[str] = "parity"
    num_bits: int = 16  # d
    leap: int = 1  # k: a leap chain shows every k-th running parity, and the last

    def __post_init__(self) -> None:
        require(self.num_bits >= 2, "num_bits", self.num_bits, "must be at least 2")
        inside = 1 <= self.leap <= self.num_bits
        require(inside, "leap", self.leap, f"must be in [1, {self.num_bits}]")


@dataclass(frozen=True)
class TransformerConfig:
    """Decoder-only transformer; the defaults are the GPT-2 family at width 128."""

    kind: ClassVar[str] = "transformer"
    depth: int = 2
    width: int = 128
    num_heads: int = 4
    num_kv_heads: int = 4  # fewer than num_heads: grouped-query attention
    mlp_width: int = 512
    positions: Literal["learned", "rotary"] = "learned"
    norm: Literal["layer", "rms"] = "layer"
    mlp: Literal["gelu", "swiglu"] = "gelu"
    bias: bool = True
    tie_embedding: bool = True
    init_std: float = 0.088  # of weights; residual ones are divided by sqrt(2 depth)
    sliding_window: int = 0  # 0: every earlier position is visible
    dtype: Literal["float32", "bfloat16"] = "float32"  # of compute; params are float32

    def __post_init__(self) -> None:
        require_positive(
            self, "depth", "width", "num_heads", "num_kv_heads", "mlp_width"
        )
        heads = self.num_heads
        divides = self.width % heads == 0
        require(divides, "num_heads", heads, f"must divide width={self.width}")
        divides = heads % self.num_kv_heads == 0
        allowed = f"must divide num_heads={heads}"
        require(divides, "num_kv_heads", self.num_kv_heads, allowed)
        even = self.positions == "learned" or (self.width // heads) % 2 == 0
        allowed = f"head size {self.width / heads:g} must be even for rotary positions"
        require(even, "num_heads", heads, allowed)
        allowed = "must be 0 (off) or positive"
        require(
            self.sliding_window >= 0, "sliding_window", self.sliding_window, allowed
        )


def gpt2(depth: int = 2, width: int = 128, **overrides: Any) -> TransformerConfig:
    """GPT-2 family: learned positions, LayerNorm, GELU, biases, tied embedding.

    The paper uses depth 2, 4, 8 and width 128, 256; heads of size 32 are ours, and so
    is init_std = 1 / sqrt(width): GPT-2's 0.02, for width 768, learns slower here.
    """
    heads = width // 32
    preset: dict[str, Any] = dict(
        depth=depth,
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        mlp_width=4 * width,
        init_std=width**-0.5,
    )
    return TransformerConfig(**preset | overrides)


def mistral(depth: int = 2, width: int = 128, **overrides: Any) -> TransformerConfig:
    """Mistral family: rotary, RMSNorm, SwiGLU, grouped-query heads, no biases.

    The paper uses depth 2, 4, 8 and width 128, 256; heads of size 32, two query heads
    to one key-value head and an MLP of 3.5 widths (as in Mistral 7B) are ours.
    """
    heads = width // 32
    preset: dict[str, Any] = dict(
        depth=depth,
        width=width,
        num_heads=heads,
        num_kv_heads=heads // 2,
        mlp_width=7 * width // 2,
        init_std=width**-0.5,
        positions="rotary",
        norm="rms",
        mlp="swiglu",
        bias=False,
        tie_embedding=False,
    )
    return TransformerConfig(**preset | overrides)


@dataclass(frozen=True)
class LinearConfig:
    """The chain of linear predictors of the paper's theory; it has no sizes."""

    kind: ClassVar[str] = "linear"


@dataclass(frozen=True)
class PretrainConfig:
    """Next-token prediction on fresh demonstrations (SCIENCE: paper section 3)."""

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

    def __post_init__(self) -> None:
        require_positive(self, "batch_size")
        largest = self.max_step_size
        require(largest >= 0, "max_step_size", largest, "must be 0 (none) or positive")


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


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation on fresh prompts: greedy, and sampled at each temperature."""

    num_prompts: int = 512
    temperatures: tuple[float, ...] = (0.75, 1.0, 1.5)

    def __post_init__(self) -> None:
        require_positive(self, "num_prompts")
        for value in self.temperatures:
            require(value > 0, "temperatures", value, "must be positive")


@dataclass(frozen=True)
class PopulationConfig:
    """How the members of one program are laid out; results do not depend on it."""

    num_devices: int = 0  # members are sharded over so many devices; 0: all local ones
    vmap_width: int = 0  # members per vmap on a device; 0: all on GPU/TPU, 1 on CPU

    def __post_init__(self) -> None:
        for name in ("num_devices", "vmap_width"):
            value = getattr(self, name)
            require(value >= 0, name, value, "must be 0 (automatic) or positive")


@dataclass(frozen=True)
class RunConfig:
    """One stage of an experiment: an algorithm, its numbers, where it starts."""

    stage: StageConfig = field(default_factory=PretrainConfig)
    hypers: Hypers = field(default_factory=Hypers)
    num_steps: int = 1000
    log_every: int = 10  # steps merged into one record of training metrics
    eval_every: int = 100
    checkpoint_every: int = 0  # 0: only at the start and at the end
    parent: str = ""  # run of this experiment, or run directory; empty: from scratch
    parent_step: int = -1  # checkpoint of the parent to start from; -1: the last one
    axes: FrozenDict[str, tuple[float, ...]] = FrozenDict()  # beside the experiment's
    task: ParityConfig | None = None  # None: the experiment's

    def __post_init__(self) -> None:
        require_positive(self, "num_steps", "log_every", "eval_every")
        every = self.checkpoint_every
        allowed = "must be 0 (start and end only) or positive"
        require(every >= 0, "checkpoint_every", every, allowed)
        try:
            check_hypers(self.hypers)
        except ConfigError as error:
            raise error.under("hypers") from None
        check_axes(self.axes)
        self.check_length_price(self.axes)

    def check_length_price(self, axes: typing.Mapping[str, tuple[float, ...]]) -> None:
        """Refuse a price of length that would do nothing, or everything."""
        price = max(axes.get("length_price", (self.hypers.length_price,)))
        idle = (
            isinstance(self.stage, PolicyGradientConfig)
            and self.stage.rollout.num_generations == 2
            and self.stage.scale_rewards == "group"
        )
        allowed = (
            "has no size with num_generations=2 and scale_rewards='group': the std of "
            "two rewards divides it away; use more generations or scale_rewards='none'"
        )
        require(not (idle and price > 0), "hypers.length_price", price, allowed)
        allowed = "must be 0 with STaR: it keeps samples whose reward is 1"
        is_star = isinstance(self.stage, StarConfig | LinearStarConfig)
        require(not (is_star and price > 0), "hypers.length_price", price, allowed)


@dataclass(frozen=True)
class Experiment:
    """A task, a model, a population and the stages that are chained on them."""

    task: ParityConfig = field(default_factory=ParityConfig)
    model: TransformerConfig | LinearConfig = field(default_factory=TransformerConfig)
    axes: FrozenDict[str, tuple[float, ...]] = FrozenDict({"seed": (0,)})
    runs: FrozenDict[str, RunConfig] = FrozenDict()
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    population: PopulationConfig = field(default_factory=PopulationConfig)

    def __post_init__(self) -> None:
        check_axes(self.axes)
        allowed = "must name at least one seed"
        require(
            bool(self.axes.get("seed")), "axes.seed", self.axes.get("seed"), allowed
        )
        for name, run in self.runs.items():
            overlap = sorted(set(run.axes) & set(self.axes))
            allowed = "is already an axis of the experiment"
            require(not overlap, f"runs.{name}.axes", overlap, allowed)
            try:
                run.check_length_price({**self.axes, **run.axes})
            except ConfigError as error:
                raise error.under(f"runs.{name}") from None
            self._check_linear(name, run)

    def _check_linear(self, name: str, run: RunConfig) -> None:
        """Stages of the linear model need it; its responses stop at bit 1 or d."""
        is_linear = isinstance(self.model, LinearConfig)
        needs_linear = isinstance(run.stage, LinearPretrainConfig | LinearStarConfig)
        allowed = "needs model.kind='linear'"
        kind = run.stage.kind
        require(is_linear or not needs_linear, f"runs.{name}.stage.kind", kind, allowed)
        leap = (run.task or self.task).leap
        allowed = "must be 1 with the linear model: it stops after bit 1 or bit d"
        require(leap == 1 or not is_linear, "task.leap", leap, allowed)


def check_axes(axes: typing.Mapping[str, tuple[float, ...]]) -> None:
    """ConfigError unless every axis exists and has distinct values within bounds."""
    for name, values in axes.items():
        if name != "seed" and name not in HYPER_BOUNDS:
            raise unknown_name(name, values, ["seed", *HYPER_BOUNDS]).under("axes")
        allowed = "values of an axis must be distinct"
        require(len(set(values)) == len(values), f"axes.{name}", values, allowed)
        for value in values:
            if name == "seed":
                whole = isinstance(value, int) and value >= 0
                require(whole, "axes.seed", value, "must be a whole number >= 0")
            else:
                try:
                    check_hyper(name, value)
                except ConfigError as error:
                    raise error.under("axes") from None


def to_config_dict(config: Any) -> ConfigDict:
    """The ml_collections form that absl flags can override field by field.

    A union of configs carries its `kind`; every possible axis is listed, maybe empty.
    """
    return ConfigDict(to_dict(config, every_axis=True))


def to_dict(config: Any, every_axis: bool = False) -> Any:
    """Plain dicts and tuples; `from_dict` inverts it."""
    if not dataclasses.is_dataclass(config):
        return config
    out: dict[str, Any] = {"kind": config.kind} if hasattr(config, "kind") else {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.name == "axes":
            empty = dict.fromkeys(["seed", *HYPER_BOUNDS], ()) if every_axis else {}
            value = empty | dict(value)
        elif isinstance(value, FrozenDict):
            value = {k: to_dict(v, every_axis) for k, v in value.items()}
        else:
            value = to_dict(value, every_axis)
        out[f.name] = value
    return out


def from_dict(kind: Any, value: Any) -> Any:
    """Build a config of type `kind` from plain dicts; anything unknown is an error."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        if value is None and types.NoneType in args:
            return None
        return _from_union(tuple(a for a in args if a is not types.NoneType), value)
    if dataclasses.is_dataclass(kind):
        return _from_fields(kind, value)
    if origin is FrozenDict:
        return _from_mapping(args[1], value)
    if origin is tuple:
        items = value if isinstance(value, (tuple, list)) else (value,)
        return tuple(from_dict(args[0], item) for item in items)
    if origin is Literal:
        if value not in args:
            raise unknown_value("", value, args)
        return value
    if kind is Any or kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        require(number, "", value, "must be a number")
        return value if kind is Any else float(value)
    require(type(value) is kind, "", value, f"must be of type {kind.__name__}")
    return value


def _child(name: str, kind: Any, value: Any) -> Any:
    """from_dict with the field's name put before the path of an error."""
    try:
        return from_dict(kind, value)
    except ConfigError as error:
        path = f"{name}.{error.name}" if error.name else name
        raise ConfigError(path, error.value, error.allowed) from None


def _from_union(kinds: tuple[Any, ...], value: Any) -> Any:
    by_kind = {kind.kind: kind for kind in kinds}
    require(isinstance(value, dict), "", value, "must be a mapping")
    kind = value.get("kind")
    allowed = f"must be one of {', '.join(sorted(by_kind))}"
    require(kind in by_kind, "kind", kind, allowed)
    return _from_fields(by_kind[kind], value)


def _from_fields(kind: Any, value: Any) -> Any:
    require(isinstance(value, dict), "", value, "must be a mapping")
    value = {k: v for k, v in value.items() if k != "kind" or not hasattr(kind, "kind")}
    hints = typing.get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    for name in value:
        if name not in names:
            raise unknown_name(name, value[name], names)
    return kind(**{n: _child(n, hints[n], v) for n, v in value.items()})


def _from_mapping(item: Any, value: Any) -> FrozenDict:
    require(isinstance(value, dict), "", value, "must be a mapping")
    if typing.get_origin(item) is tuple:  # axes: an empty tuple is an unused one
        axes = {k: _child(k, tuple[Any, ...], v) for k, v in value.items()}
        return FrozenDict({k: v for k, v in axes.items() if v})
    return FrozenDict({name: _child(name, item, v) for name, v in value.items()})
