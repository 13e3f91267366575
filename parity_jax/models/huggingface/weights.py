"""Weights as Hugging Face's classes name and lay them, both ways.

GPT-2 keeps weights as in x out (Conv1D) and query, key and value side by side in one;
the others keep them as out x in. Blocks that are stacked here are single tensors there.
"""

import math
import re
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jax.tree_util import tree_flatten_with_path

from parity_jax.config import require
from parity_jax.hosts import spread_over_hosts
from parity_jax.models.huggingface.config import family_of
from parity_jax.models.transformer import TransformerConfig
from parity_jax.types import Params, path_text

HEAD = "lm_head.weight"
# What older files hold beside the weights: attention masks, rotary frequencies.
BUFFERS = re.compile(r"\.attn\.(masked_)?bias$|(\.|^)rotary_emb\.inv_freq$")


class Layer(NamedTuple):
    """A layer of theirs and those of ours that stand side by side in it."""

    theirs: str
    ours: tuple[str, ...]
    block: int = -1  # in which block it is


def layers(cfg: TransformerConfig) -> Iterator[Layer]:
    """All layers; those of a block are named without it ("attention.query")."""
    is_gpt2 = family_of(cfg) == "gpt2"
    if is_gpt2:
        yield Layer("transformer.wte", ("embed",))
        yield Layer("transformer.wpe", ("position_embed",))
        fused = ("attention.query", "attention.key", "attention.value")
        in_block: dict[str, tuple[str, ...]] = {
            "ln_1": ("attention_norm",),
            "attn.c_attn": fused,
            "attn.c_proj": ("attention.out",),
            "ln_2": ("mlp_norm",),
            "mlp.c_fc": ("mlp.up",),
            "mlp.c_proj": ("mlp.down",),
        }
    else:
        yield Layer("model.embed_tokens", ("embed",))
        in_block = {
            "input_layernorm": ("attention_norm",),
            "self_attn.q_proj": ("attention.query",),
            "self_attn.k_proj": ("attention.key",),
            "self_attn.v_proj": ("attention.value",),
            "self_attn.o_proj": ("attention.out",),
            "self_attn.q_norm": ("attention.query_norm",),
            "self_attn.k_norm": ("attention.key_norm",),
            "post_attention_layernorm": ("mlp_norm",),
            "mlp.gate_proj": ("mlp.gate",),
            "mlp.up_proj": ("mlp.up",),
            "mlp.down_proj": ("mlp.down",),
        }
    prefix = "transformer.h" if is_gpt2 else "model.layers"
    for n in range(cfg.depth):
        for theirs, ours in in_block.items():
            yield Layer(f"{prefix}.{n}.{theirs}", ours, n)
    yield Layer("transformer.ln_f" if is_gpt2 else "model.norm", ("final_norm",))
    if not cfg.tie_embedding:
        yield Layer("lm_head", ("unembed",))


# Names of what a layer holds: ours -> theirs.
LEAVES = {
    "embedding": "weight",
    "scale": "weight",
    "kernel": "weight",
    "bias": "bias",
}


class Piece(NamedTuple):
    """Where one tensor of theirs is found in our parameters."""

    theirs: str
    parameters: list[str]  # by path, side by side along the tensor's out axis
    block: int  # its place in parameters that are stacked; -1: they are not
    transposed: bool  # theirs is out x in


def pieces(cfg: TransformerConfig, names: Container[str]) -> Iterator[Piece]:
    """Every tensor of a model whose parameters have these names."""
    keeps_in_x_out = family_of(cfg) == "gpt2"
    for theirs, ours, n in layers(cfg):
        where = "" if n < 0 else "blocks." if cfg.scan else f"blocks_{n}."
        for leaf, their_leaf in LEAVES.items():
            parameters = [f"{where}{name}.{leaf}" for name in ours]
            if parameters[0] in names:
                is_linear = leaf == "kernel"
                transposed = is_linear and (theirs == "lm_head" or not keeps_in_x_out)
                name, block = f"{theirs}.{their_leaf}", n if cfg.scan else -1
                yield Piece(name, parameters, block, transposed)


def to_state_dict(
    cfg: TransformerConfig, params: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face's tensors of a member's parameters by path, one after the other."""
    for piece in pieces(cfg, params):
        block = piece.block if piece.block >= 0 else slice(None)
        parts = [
            x.reshape(_matrix_shape(name, x.shape))
            for name in piece.parameters
            for x in (np.asarray(params[name][block]),)
        ]
        tensor = np.concatenate(parts, -1) if len(parts) > 1 else parts[0]
        tensor = tensor.T if piece.transposed else tensor
        yield piece.theirs, np.ascontiguousarray(tensor)


def load(
    cfg: TransformerConfig,
    template: Any,
    names: Collection[str],
    read: Callable[[str], np.ndarray],
) -> Params:
    """Parameters like the template's arrays, of the tensors that a file holds by name.

    `read` gives one of them. Each goes to the devices by itself, in the type and layout
    that it has, and is turned into ours there: no more than one is on the host. Names
    and shapes are as `pieces` says; ConfigError for a tensor that is missing, unknown,
    of another shape or not finite. The lm_head of a tied embedding may be there if it
    is the embedding.
    """
    leaves = {path_text(k): x for k, x in tree_flatten_with_path(template)[0]}
    found, wanted = own_names(cfg, names), [*pieces(cfg, leaves)]
    embedding = wanted[0].theirs
    if cfg.tie_embedding and {HEAD, embedding} <= {*found}:
        is_tied = np.array_equal(read(found[HEAD]), read(found[embedding]))
        require(is_tied, "tensor", HEAD, f"must be {embedding}: the config ties them")
        found.pop(HEAD)
    for piece in wanted:
        require(piece.theirs in found, "tensor", piece.theirs, "is missing")
    for name in sorted({*found} - {piece.theirs for piece in wanted}):
        require(False, "tensor", name, "is unknown")
    params: dict[str, Array] = {}
    for piece in wanted:
        put(params, piece, read(found[piece.theirs]), leaves)
    ordered = [params[name] for name in leaves]
    return jax.tree.unflatten(jax.tree.structure(template), ordered)


def own_names(cfg: TransformerConfig, names: Collection[str]) -> dict[str, str]:
    """The name of a tensor below a head -> its name in the file; buffers left out.

    A model that was saved without its head does not name itself: "wte.weight".
    """
    left = [name for name in names if not BUFFERS.search(name)]
    first = next(layers(cfg)).theirs.partition(".")[0] + "."
    prefix = "" if any(name.startswith(first) for name in left) else first
    return {name if name == HEAD else prefix + name: name for name in left}


def put(
    params: dict[str, Array],
    piece: Piece,
    tensor: np.ndarray,
    leaves: Mapping[str, jax.ShapeDtypeStruct],
) -> None:
    """Add what one tensor holds to the parameters."""
    shapes = [leaves[name].shape[piece.block >= 0 :] for name in piece.parameters]
    matrices = [_matrix_shape(*x) for x in zip(piece.parameters, shapes, strict=True)]
    expected = (*matrices[0][:-1], sum(shape[-1] for shape in matrices))
    expected = expected[::-1] if piece.transposed else expected
    allowed = f"must have shape {expected}"
    is_right = tensor.shape == expected
    require(is_right, f"{piece.theirs}.shape", tensor.shape, allowed)
    is_real = jnp.issubdtype(tensor.dtype, jnp.floating)
    kind = str(tensor.dtype)
    require(is_real, f"{piece.theirs}.dtype", kind, "must be floating point numbers")
    with np.errstate(over="ignore"):  # of float64: what is infinite is refused
        whole = put_whole(tensor, sharding_of(piece, leaves, tensor.ndim))
    start = 0
    is_finite = bool(jax.jit(lambda x: jnp.isfinite(x).all())(whole))
    require(is_finite, piece.theirs, "nan or inf", "must be finite")
    for name, shape, matrix in zip(piece.parameters, shapes, matrices, strict=True):
        leaf, end = leaves[name], start + matrix[-1]
        form = Form(piece.transposed, start, end, shape, leaf.dtype)
        make = jax.jit(part_of, static_argnums=1, out_shardings=leaf.sharding)
        if piece.block < 0:
            params[name] = make(whole, form)
        else:
            if name not in params:
                params[name] = jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
            params[name] = insert(params[name], piece.block, whole, form)
        start = end


def put_whole(tensor: np.ndarray, sharding: Sharding | None) -> Array:
    """A tensor on the devices; where they are other processes', each puts its part."""
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(tensor, sharding)
    return spread_over_hosts(tensor, sharding)


class Form(NamedTuple):
    """How a parameter is cut out of a tensor."""

    transposed: bool
    start: int  # on the out axis
    end: int
    shape: tuple[int, ...]
    dtype: Any


def part_of(tensor: Array, form: Form) -> Array:
    """A parameter out of a tensor of theirs."""
    matrix = tensor.T if form.transposed else tensor
    part = matrix[..., form.start : form.end]
    return part.reshape(form.shape).astype(form.dtype)


@partial(jax.jit, static_argnums=3, donate_argnums=0)
def insert(stack: Array, n: int, tensor: Array, form: Form) -> Array:
    """The parameters of all blocks with those of block n."""
    return stack.at[n].set(part_of(tensor, form))


def sharding_of(
    piece: Piece, leaves: Mapping[str, jax.ShapeDtypeStruct], num_axes: int
) -> Sharding | None:
    """How a tensor is laid out on its way: as its parameter, on the tensor's axes."""
    leaf = leaves[piece.parameters[0]]
    sharding = leaf.sharding
    if not isinstance(sharding, NamedSharding):
        return None
    spec = [*sharding.spec, *[None] * (leaf.ndim - len(sharding.spec))]
    spec = spec[piece.block >= 0 :]
    if len(piece.parameters) > 1:  # they do not lie side by side on the devices
        spec = [None] * num_axes
    elif piece.parameters[0].endswith("attention.out.kernel"):
        spec = [spec[0], spec[-1]]
    spec = spec[:num_axes]
    return NamedSharding(
        sharding.mesh, PartitionSpec(*(spec[::-1] if piece.transposed else spec))
    )


def _matrix_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """in x out of a kernel (heads and their sizes merged), a vector of a bias."""
    if name.endswith("attention.out.kernel"):
        return (math.prod(shape[:-1]), shape[-1])
    if name.endswith(".kernel"):
        return (shape[0], math.prod(shape[1:]))
    return shape if name.endswith("embedding") else (math.prod(shape),)
