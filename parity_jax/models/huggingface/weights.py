"""Models as Hugging Face has them: GPT2LMHeadModel and MistralForCausalLM.

Pure functions between a `TransformerConfig` and a config.json, between parameters and a
state dict of NumPy arrays, and from a task to a tokenizer. What these classes do alike:
pre-norm blocks, GELU in tanh form, norms with epsilon 1e-5, rotary pairs (k, k + K/2)
with base 10,000, attention scaled by K^(-1/2). GPT-2 keeps weights as in x out (Conv1D)
and query, key and value side by side in one; Mistral keeps them as out x in.
"""

import dataclasses
import math
import re
from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from parity_jax.config import ConfigError, from_dict, require, to_dict
from parity_jax.models.transformer import TransformerConfig, gpt2, mistral
from parity_jax.tasks import Task, TaskConfig

Tensors = dict[str, np.ndarray]  # by name

HEAD = "lm_head.weight"
EXTRA = "parity_jax"  # the key of config.json that holds our task
# What older files hold beside the weights: attention masks, rotary frequencies.
BUFFERS = re.compile(r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
RELATIVE = 1e-6  # numbers of config.json may be rounded so much


class Family(NamedTuple):
    """How a Hugging Face class says what a `TransformerConfig` says."""

    architecture: str
    features: dict[str, Any]  # fields of ours that are fixed
    names: dict[str, str]  # our field -> key of config.json
    required: dict[str, Any]  # what must hold for our model to be the same
    # What the class assumes of the above where config.json does not say it; what is
    # required is assumed where nothing stands here.
    defaults: dict[str, Any]


FEATURES = ("positions", "norm", "mlp", "bias")
FAMILIES = {
    "gpt2": Family(
        architecture="GPT2LMHeadModel",
        features={name: getattr(gpt2(), name) for name in FEATURES},
        names={
            "depth": "n_layer",
            "width": "n_embd",
            "num_heads": "n_head",
            "mlp_width": "n_inner",
            "tie_embedding": "tie_word_embeddings",
            "init_std": "initializer_range",
        },
        defaults={
            "n_layer": 12,
            "n_embd": 768,
            "n_head": 12,
            "n_inner": None,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
        },
        required={
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
        },
    ),
    "mistral": Family(
        architecture="MistralForCausalLM",
        features={name: getattr(mistral(), name) for name in FEATURES},
        names={
            "depth": "num_hidden_layers",
            "width": "hidden_size",
            "num_heads": "num_attention_heads",
            "num_kv_heads": "num_key_value_heads",
            "mlp_width": "intermediate_size",
            "tie_embedding": "tie_word_embeddings",
            "init_std": "initializer_range",
            "sliding_window": "sliding_window",
        },
        defaults={
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            "tie_word_embeddings": False,
            "initializer_range": 0.02,
            "sliding_window": 4096,
            "rms_norm_eps": 1e-6,
        },
        required={"hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10_000.0},
    ),
}


def family_of(cfg: TransformerConfig) -> str:
    """ "gpt2" or "mistral"; ConfigError for a mixture of features that is neither."""
    for name, family in FAMILIES.items():
        fits = all(getattr(cfg, k) == v for k, v in family.features.items())
        plain = cfg.num_kv_heads == cfg.num_heads and not cfg.sliding_window
        if fits and (plain or name == "mistral"):
            return name
    features = {name: getattr(cfg, name) for name in (*FEATURES, "sliding_window")}
    features["num_kv_heads"] = f"{cfg.num_kv_heads} of {cfg.num_heads}"
    text = " ".join(f"{name}={value}" for name, value in features.items())
    allowed = "must be GPT-2 (learned layer gelu bias=True, all heads, no window) or "
    raise ConfigError("model", text, allowed + "Mistral (rotary rms swiglu bias=False)")


def to_hf_config(
    cfg: TransformerConfig, task: Task, task_config: TaskConfig
) -> dict[str, Any]:
    """The config.json of a model; dropout is off, weights are float32."""
    kind = family_of(cfg)
    family, max_len = FAMILIES[kind], task.prompt_len + task.format.max_len
    ours = dataclasses.asdict(cfg.resolved())
    ours["sliding_window"] = cfg.sliding_window or None
    by_kind: dict[str, Any] = {
        "gpt2": {"n_positions": max_len}
        | dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
        "mistral": {"max_position_embeddings": max_len, "attention_dropout": 0.0},
    }
    return {
        "architectures": [family.architecture],
        "model_type": kind,
        "vocab_size": task.vocab_size,
        **{theirs: ours[name] for name, theirs in family.names.items()},
        **family.required,
        **by_kind[kind],
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
    require(kind in FAMILIES, "model_type", kind, "must be gpt2 or mistral")
    family = FAMILIES[str(kind)]
    found = {**family.defaults, **config, **rope_options(config)}
    for name, value in family.required.items():
        same = is_same(found.get(name, value), value)
        require(same, name, found.get(name), f"must be {value}")
    fields = {ours: found[theirs] for ours, theirs in family.names.items()}
    fields["mlp_width"] = fields["mlp_width"] or 0  # null: GPT-2's default, and ours
    fields["num_kv_heads"] = fields.get("num_kv_heads") or fields["num_heads"]
    fields["sliding_window"] = fields.get("sliding_window") or 0
    cfg: TransformerConfig = from_dict(TransformerConfig, fields | family.features)
    given = found.get("head_dim") or cfg.head_size
    require(given == cfg.head_size, "head_dim", given, f"must be {cfg.head_size}")
    return cfg.resolved()


def rope_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of rotary positions; ConfigError if they are scaled."""
    options: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        value = config.get(name) or {}
        require(isinstance(value, dict), name, value, "must be a mapping or null")
        kind = value.get("rope_type", value.get("type", "default"))
        require(kind == "default", f"{name}.rope_type", kind, "must be default")
        options |= value
    return options


def is_same(found: Any, value: Any) -> bool:
    """Whether a field of config.json has a value, a number up to rounding."""
    if isinstance(value, float) and type(found) in (int, float):
        return math.isclose(found, value, rel_tol=RELATIVE)
    return found == value


def layers(cfg: TransformerConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Their layers and ours; several of ours stand side by side in one of theirs."""
    if family_of(cfg) == "gpt2":
        yield "transformer.wte", ("embed",)
        yield "transformer.wpe", ("position_embed",)
        for n in range(cfg.depth):
            theirs, ours = f"transformer.h.{n}", f"blocks_{n}"
            fused = tuple(f"{ours}.attention.{x}" for x in ("query", "key", "value"))
            yield f"{theirs}.ln_1", (f"{ours}.attention_norm",)
            yield f"{theirs}.attn.c_attn", fused
            yield f"{theirs}.attn.c_proj", (f"{ours}.attention.out",)
            yield f"{theirs}.ln_2", (f"{ours}.mlp_norm",)
            yield f"{theirs}.mlp.c_fc", (f"{ours}.mlp.up",)
            yield f"{theirs}.mlp.c_proj", (f"{ours}.mlp.down",)
        yield "transformer.ln_f", ("final_norm",)
    else:
        yield "model.embed_tokens", ("embed",)
        for n in range(cfg.depth):
            theirs, ours = f"model.layers.{n}", f"blocks_{n}"
            yield f"{theirs}.input_layernorm", (f"{ours}.attention_norm",)
            for x, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
                yield f"{theirs}.self_attn.{x}_proj", (f"{ours}.attention.{name}",)
            yield f"{theirs}.post_attention_layernorm", (f"{ours}.mlp_norm",)
            for name in ("gate", "up", "down"):
                yield f"{theirs}.mlp.{name}_proj", (f"{ours}.mlp.{name}",)
        yield "model.norm", ("final_norm",)
    if not cfg.tie_embedding:
        yield "lm_head", ("unembed",)


# Names of what a layer holds: ours -> theirs.
LEAVES = {
    "embedding": "weight",
    "scale": "weight",
    "kernel": "weight",
    "bias": "bias",
}


def pairs(
    cfg: TransformerConfig, names: Container[str]
) -> Iterator[tuple[str, list[str], bool]]:
    """Their tensor, our parameters (of all `names`) in it, whether it is transposed."""
    keeps_in_x_out = family_of(cfg) == "gpt2"
    for theirs, ours in layers(cfg):
        for leaf, their_leaf in LEAVES.items():
            if f"{ours[0]}.{leaf}" in names:
                is_linear = leaf == "kernel"
                transposed = is_linear and (theirs == "lm_head" or not keeps_in_x_out)
                parameters = [f"{name}.{leaf}" for name in ours]
                yield f"{theirs}.{their_leaf}", parameters, transposed


def to_state_dict(cfg: TransformerConfig, params: Tensors) -> Tensors:
    """Hugging Face's tensors of a member's parameters, by path ("embed.embedding")."""
    out = {}
    for theirs, ours, transposed in pairs(cfg, params):
        parts = [_as_matrix(name, params[name]) for name in ours]
        tensor = np.concatenate(parts, -1)
        out[theirs] = np.ascontiguousarray(tensor.T if transposed else tensor)
    return out


def from_state_dict(
    cfg: TransformerConfig, tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]
) -> Tensors:
    """The inverse, as float32; `shapes` are those of our parameters by path.

    ConfigError for a tensor that is missing, unknown or of another shape. The lm_head
    of a tied embedding may be there if it is the embedding.
    """
    embedding = f"{next(layers(cfg))[0]}.weight"
    left, out = weights_of(tensors, f"{embedding.partition('.')[0]}."), {}
    has_both = cfg.tie_embedding and {HEAD, embedding} <= {*left}
    if has_both and np.array_equal(left[HEAD], left[embedding]):
        left.pop(HEAD)
    for theirs, ours, transposed in pairs(cfg, shapes):
        require(theirs in left, "tensor", theirs, "is missing")
        tensor = np.asarray(left.pop(theirs), np.float32)
        matrix = tensor.T if transposed else tensor
        sizes = [_as_matrix(name, np.empty(shapes[name])).shape for name in ours]
        expected = (*sizes[0][:-1], sum(size[-1] for size in sizes))
        allowed = f"must have shape {expected[::-1] if transposed else expected}"
        require(matrix.shape == expected, f"{theirs}.shape", tensor.shape, allowed)
        ends = np.cumsum([size[-1] for size in sizes])[:-1]
        for name, part in zip(ours, np.split(matrix, ends, -1), strict=True):
            out[name] = np.ascontiguousarray(part).reshape(shapes[name])
    require(not left, "tensor", next(iter(left), ""), "is unknown")
    return out


def weights_of(tensors: Tensors, prefix: str) -> Tensors:
    """Tensors without buffers, under the names that they have below a head.

    A model that was saved without its head does not name itself: "wte.weight".
    """
    left = {name: x for name, x in tensors.items() if not BUFFERS.search(name)}
    if any(name.startswith(prefix) for name in left):
        return left
    return {name if name == HEAD else prefix + name: x for name, x in left.items()}


def _as_matrix(name: str, array: np.ndarray) -> np.ndarray:
    """in x out of a kernel (heads and their sizes merged), a vector of a bias."""
    if name.endswith("attention.out.kernel"):
        return array.reshape(-1, array.shape[-1])
    if name.endswith(".kernel"):
        return array.reshape(len(array), -1)
    return array if name.endswith("embedding") else array.reshape(-1)
