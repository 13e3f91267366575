"""config.json of GPT2LMHeadModel, Llama-, Mistral-, Qwen2- and Qwen3ForCausalLM.

What these classes do alike: pre-norm blocks, GELU in tanh form or SwiGLU, rotary pairs
(k, k + K/2), attention scaled by K^(-1/2). What ours cannot do is refused by its name.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from parity_jax.config import ConfigError, from_dict, require, to_dict
from parity_jax.models.transformer import (
    RopeScaling,
    TransformerConfig,
    gpt2,
    llama,
    mistral,
    qwen,
)
from parity_jax.tasks import Task, TaskConfig

EXTRA = "parity_jax"  # the key of config.json that holds our task
DTYPES = ("float32", "bfloat16", "float16", "float64")
RELATIVE = 1e-6  # numbers of config.json may be rounded so much


class Family(NamedTuple):
    """How a Hugging Face class says what a `TransformerConfig` says."""

    architecture: str
    preset: TransformerConfig  # whose FEATURES are fixed
    names: dict[str, str]  # our field -> key of config.json
    required: dict[str, Any]  # what must hold for our model to be the same
    # What the class assumes of the above where config.json does not say it; what is
    # required is assumed where nothing stands here.
    defaults: dict[str, Any]
    aliases: dict[str, str] = {}  # another key of config.json -> the key it stands for

    @property
    def features(self) -> dict[str, Any]:
        return {name: getattr(self.preset, name) for name in FEATURES}


FEATURES = ("positions", "norm", "mlp", "bias", "qkv_bias", "qk_norm")
ROTARY_NAMES = {
    "depth": "num_hidden_layers",
    "width": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "mlp_width": "intermediate_size",
    "vocab_size": "vocab_size",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "tie_embedding": "tie_word_embeddings",
    "init_std": "initializer_range",
}
ROTARY_DEFAULTS = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}
FAMILIES = {
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        preset=gpt2(),
        names={
            "depth": "n_layer",
            "width": "n_embd",
            "num_heads": "n_head",
            "mlp_width": "n_inner",
            "vocab_size": "vocab_size",
            "num_positions": "n_positions",
            "norm_eps": "layer_norm_epsilon",
            "tie_embedding": "tie_word_embeddings",
            "init_std": "initializer_range",
        },
        defaults={
            "n_layer": 12,
            "n_embd": 768,
            "n_head": 12,
            "n_inner": None,
            "vocab_size": 50257,
            "n_positions": 1024,
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
        },
        required={
            "activation_function": "gelu_new",
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        aliases={
            "num_hidden_layers": "n_layer",
            "hidden_size": "n_embd",
            "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
        },
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        preset=mistral(),
        names=ROTARY_NAMES | {"sliding_window": "sliding_window"},
        defaults=ROTARY_DEFAULTS
        | {
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            "vocab_size": 32000,
            "sliding_window": 4096,
        },
        required={"hidden_act": "silu"},
    ),
    "llama": Family(
        architecture="LlamaForCausalLM",
        preset=llama(),
        names=ROTARY_NAMES,
        defaults=ROTARY_DEFAULTS | {"intermediate_size": 11008, "vocab_size": 32000},
        required={"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        preset=qwen(),
        names=ROTARY_NAMES,
        defaults=ROTARY_DEFAULTS
        | {
            "num_key_value_heads": 32,
            "intermediate_size": 22016,
            "vocab_size": 151936,
        },
        required={"hidden_act": "silu", "use_sliding_window": False},
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        preset=qwen(qkv_bias=False, qk_norm=True),
        names=ROTARY_NAMES,
        defaults=ROTARY_DEFAULTS
        | {
            "num_key_value_heads": 32,
            "head_dim": 128,
            "intermediate_size": 22016,
            "vocab_size": 151936,
        },
        required={
            "hidden_act": "silu",
            "attention_bias": False,
            "use_sliding_window": False,
        },
    ),
}
# Our field -> key of rope_scaling of type llama3.
SCALING_NAMES = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_len": "original_max_position_embeddings",
}


def family_of(cfg: TransformerConfig, kind: str = "") -> str:
    """The key of the family that a config is of: `kind` if it fits, else the first.

    Several fit where they differ in name only: a Mistral without window is a Llama.
    ConfigError for a mixture of features that is none.
    """
    plain = dataclasses.replace(cfg.resolved(), sliding_window=0, rope_scaling=None)
    is_gpt2_like = plain.num_kv_heads == plain.num_heads
    is_gpt2_like &= plain.head_size * plain.num_heads == plain.width

    def fits(name: str, family: Family) -> bool:
        same = all(getattr(cfg, k) == v for k, v in family.features.items())
        same &= is_gpt2_like or name != "gpt2"
        same &= not cfg.sliding_window or name == "mistral"
        return same and (cfg.rope_scaling is None or name != "mistral")

    fitting = [name for name, family in FAMILIES.items() if fits(name, family)]
    if fitting:
        return kind if kind in fitting else fitting[0]
    features = {name: getattr(cfg, name) for name in (*FEATURES, "sliding_window")}
    features["num_kv_heads"] = f"{plain.num_kv_heads} of {plain.num_heads}"
    text = " ".join(f"{name}={value}" for name, value in features.items())
    allowed = "must be GPT-2 (learned layer gelu bias=True, all heads, no window), "
    allowed += "Mistral or Llama (rotary rms swiglu bias=False) or Qwen (qkv_bias or "
    raise ConfigError("model", text, allowed + "qk_norm beside)")


def to_hf_config(
    cfg: TransformerConfig, task: Task, task_config: TaskConfig, kind: str = ""
) -> dict[str, Any]:
    """The config.json of a model; dropout is off, weights are float32.

    `kind` is the model_type to prefer where several are the same.
    """
    kind = family_of(cfg, kind)
    family, max_len = FAMILIES[kind], task.prompt_len + task.format.max_len
    ours = dataclasses.asdict(cfg.resolved())
    ours["sliding_window"] = cfg.sliding_window or None
    ours["vocab_size"] = cfg.vocab_size or task.vocab_size
    ours["num_positions"] = cfg.num_positions or max_len
    by_kind: dict[str, Any] = {
        "max_position_embeddings": max_len,
        "attention_dropout": 0.0,
        "rope_scaling": scaling_to_hf(cfg.rope_scaling),
    }
    if kind == "gpt2":
        by_kind = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    return {
        "architectures": [family.architecture],
        "model_type": kind,
        **{theirs: ours[name] for name, theirs in family.names.items()},
        **family.required,
        **by_kind,
        "bos_token_id": None,
        "eos_token_id": end_id(task),
        "pad_token_id": task.format.pad_id,
        "dtype": "float32",
        EXTRA: {"task": to_dict(task_config)},
    }


def end_id(task: Task) -> int | list[int]:
    """The token that ends a response, or a list if there are several."""
    ids = task.format.end_ids
    return ids[0] if len(ids) == 1 else list(ids)


def from_hf_config(config: Mapping[str, Any]) -> TransformerConfig:
    """Our config of a config.json; ConfigError if our model would not be the same."""
    kind = config.get("model_type")
    allowed = f"must be one of {', '.join(FAMILIES)}"
    known = isinstance(kind, str) and kind in FAMILIES
    require(known, "model_type", kind, allowed)
    family = FAMILIES[str(kind)]
    quantized = config.get("quantization_config")
    allowed = "must be null: quantised weights are not read"
    require(quantized is None, "quantization_config", quantized, allowed)
    for name in ("dtype", "torch_dtype"):
        dtype = config.get(name)
        allowed = f"must be one of {', '.join(DTYPES)}, or null"
        require(dtype is None or dtype in DTYPES, name, dtype, allowed)
    rope = rope_options(config)
    windows = config.get("layer_types")
    is_full = kind == "mistral" or windows is None
    is_full |= isinstance(windows, list) and all(w == "full_attention" for w in windows)
    require(is_full, "layer_types", windows, "must be full_attention in all layers")
    found = {**family.defaults, **config}
    for alias, name in family.aliases.items():
        if alias in config:
            same = config.get(name, config[alias]) == config[alias]
            allowed = f"must be {config.get(name)}, as {name}, which it stands for"
            require(same, alias, config[alias], allowed)
            found[name] = config[alias]
    if "rope_theta" in rope:
        found["rope_theta"] = rope.pop("rope_theta")
    for name, value in family.required.items():
        same = is_same(found.get(name, value), value)
        require(same, name, found.get(name), f"must be {value}")
    fields = {ours: found[theirs] for ours, theirs in family.names.items()}
    no_window = fields.get("sliding_window") == 0
    require(not no_window, "sliding_window", 0, "must be positive, or null for none")
    for name in ("mlp_width", "head_size", "sliding_window"):
        given = fields.get(name)  # null: from the width; no window
        fields[name] = 0 if given is None else given
    if isinstance(fields["norm_eps"], float):  # which may have been a float32
        fields["norm_eps"] = float(f"{fields['norm_eps']:.7g}")
    if fields.get("num_kv_heads") is None:
        fields["num_kv_heads"] = fields["num_heads"]
    fields |= family.features
    if fields["positions"] == "rotary":
        fields["rope_scaling"] = scaling_from_hf(rope)
    try:
        cfg: TransformerConfig = from_dict(TransformerConfig, fields)
    except ConfigError as error:  # in the words of config.json
        name, allowed = family.names.get(error.name, error.name), error.allowed
        for ours, theirs in family.names.items():
            allowed = re.sub(rf"\b{ours}=", f"{theirs}=", allowed)
        raise ConfigError(name, error.value, allowed) from None
    return cfg.resolved()


def for_task(cfg: TransformerConfig, task: Task) -> TransformerConfig:
    """With 0 where it has as many tokens and positions as the task, as ours say it."""
    num_positions = task.prompt_len + task.format.max_len
    return dataclasses.replace(
        cfg,
        vocab_size=cfg.vocab_size * (cfg.vocab_size != task.vocab_size),
        num_positions=cfg.num_positions * (cfg.num_positions != num_positions),
    )


def rope_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of rotary positions, as either version of it does."""
    options: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        value = config.get(name)
        value = {} if value is None else value
        require(isinstance(value, dict), name, value, "must be a mapping or null")
        for key, option in value.items():
            is_plain = not isinstance(option, dict | list)
            require(is_plain, f"{name}.{key}", option, "must be a number or a name")
        kind = value.get("rope_type", value.get("type", "default"))
        allowed = "must be default or llama3"
        require(kind in ("default", "llama3"), f"{name}.rope_type", kind, allowed)
        said = value | ({"rope_type": kind} if value else {})
        said.pop("type", None)
        for key in sorted({*said} & {*options}):
            allowed = f"must be {options[key]}, as in rope_scaling"
            same = said[key] == options[key]
            require(same, f"{name}.{key}", said[key], allowed)
        options |= said
    for key in ("rope_theta", "original_max_position_embeddings"):
        if key in config and key in options:
            allowed = f"must be {options[key]}, as among the rotary options"
            require(is_same(config[key], options[key]), key, config[key], allowed)
    partial = options.get("partial_rotary_factor", 1.0)
    partial = config.get("partial_rotary_factor", partial)
    require(is_same(partial, 1.0), "partial_rotary_factor", partial, "must be 1.0")
    return options


def scaling_from_hf(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields of Llama's scaling of rotary frequencies, if there is one."""
    if rope.get("rope_type", "default") == "default":
        return None
    for name in SCALING_NAMES.values():
        require(name in rope, f"rope_scaling.{name}", None, "is needed by llama3")
    return {ours: rope[theirs] for ours, theirs in SCALING_NAMES.items()}


def scaling_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The rope_scaling of config.json."""
    if scaling is None:
        return None
    numbers = {theirs: getattr(scaling, ours) for ours, theirs in SCALING_NAMES.items()}
    return {"rope_type": "llama3", **numbers}


def is_same(found: Any, value: Any) -> bool:
    """Whether a field of config.json has a value, a number up to rounding."""
    if isinstance(value, float) and type(found) in (int, float):
        return math.isclose(found, value, rel_tol=RELATIVE)
    return found == value
