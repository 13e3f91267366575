"""The tokens of all rows, as arrays: what lies on the device, once for all members."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from parity_jax.config import require
from parity_jax.tasks.text.rows import Splits
from parity_jax.tasks.text.verify import Verifier, is_readable
from parity_jax.types import Key, Prompt

EPOCH = 0x85EBCA6B  # folded into the member's key: orders of epochs are outside steps


class Table(NamedTuple):
    """Rows of training, then those of test: N in all."""

    prompt: Any  # NxL int, padded on the left
    prompt_len: Any  # N int
    long: Any  # NxT int, with its end, padded behind
    short: Any  # NxS int, the same


class Tokens(NamedTuple):
    """The tokens of a row; demonstrations with their ends."""

    prompt: list[int]
    long: list[int]
    short: list[int]


class Lengths(NamedTuple):
    """The largest that are allowed, in tokens; 0: whatever is there."""

    prompt: int
    response: int


class Kept(NamedTuple):
    """The rows that fit, with their tokens, and how many did not."""

    splits: Splits
    tokens: list[Tokens]
    num_dropped: int


def fitting(
    splits: Splits,
    tokens: Sequence[Tokens],
    most: Lengths,
    drops: bool,
    verifier: Verifier = "tokens",
) -> Kept:
    """Rows that are not too long and have an answer that the verifier can read.

    ConfigError for others, or they are dropped.
    """
    rows, num_train = splits.rows, len(splits.train)
    long_prompt = [0 < most.prompt < len(t.prompt) for t in tokens]
    longest = [max(len(t.long), len(t.short)) for t in tokens]
    long_response = [0 < most.response < length for length in longest]
    bad = [not is_readable(verifier, row.answer) for row in rows]
    for name, value, wrong, what in (
        ("max_prompt", most.prompt, long_prompt, "longer prompts"),
        ("max_response", most.response, long_response, "longer demonstrations"),
        ("verifier", verifier, bad, "answers that it cannot read"),
    ):
        first = [rows[i].answer for i, is_wrong in enumerate(wrong) if is_wrong][:3]
        text = (
            f"{sum(wrong)} of {len(rows)} rows have {what}, the first those with the "
            f"answers {first}; bad_rows='drop' leaves them out"
        )
        require(drops or not any(wrong), name, value, text)
    each = zip(long_prompt, long_response, bad, strict=True)
    keep = [not any(reasons) for reasons in each]
    kept = Splits(
        *(
            [
                row
                for row, is_kept in zip(rows[part], keep[part], strict=True)
                if is_kept
            ]
            for part in (slice(num_train), slice(num_train, None))
        )
    )
    for name, split in kept._asdict().items():
        require(bool(split), f"source {name} rows", 0, "no row of the split is left")
    chosen = [t for t, is_kept in zip(tokens, keep, strict=True) if is_kept]
    return Kept(kept, chosen, len(rows) - len(chosen))


def table_of(tokens: Sequence[Tokens], pad_id: int) -> Table:
    """The arrays, as wide as the longest of each."""
    columns = [[t[i] for t in tokens] for i in range(3)]
    prompt, long, short = (padded(c, pad_id) for c in columns)
    for row, ids in zip(prompt, columns[0], strict=True):
        row[:] = pad_id
        row[len(row) - len(ids) :] = ids
    lengths = np.array([len(ids) for ids in columns[0]], np.int32)
    return Table(prompt, lengths, long, short)


def padded(ids: Sequence[Sequence[int]], pad_id: int) -> np.ndarray:
    """Token lists of any length as one array, padded behind."""
    out = np.full((len(ids), max(map(len, ids))), pad_id, np.int32)
    for row, own in zip(out, ids, strict=True):
        row[: len(own)] = own
    return out


def prompts_at(row_B: Any, data: Table) -> Prompt:
    """The prompts of rows."""
    num_positions = data.prompt.shape[1]
    start_Bx1 = num_positions - data.prompt_len[row_B][:, None]
    mask_BxL: Any = np.arange(num_positions)[None] >= start_Bx1
    return Prompt(data.prompt[row_B], mask_BxL, row_B)


def epoch_rows(key: Key, step: Array, num: int, num_rows: int) -> Array:
    """The rows of a step, of which each takes the next `num` of the epoch's order.

    Every epoch has all rows once, in an order of its own that follows from the member's
    key and the epoch's number: nothing is carried from step to step.
    """
    num_epochs = (num - 1) // num_rows + 2  # that a step may reach into
    place_B = step.astype(jnp.uint32) * num + jnp.arange(num, dtype=jnp.uint32)
    epoch_B = place_B // num_rows
    first = epoch_B[0]

    def order(offset: Array) -> Array:
        k_epoch = jax.random.fold_in(jax.random.fold_in(key, EPOCH), first + offset)
        return jax.random.permutation(k_epoch, num_rows)

    orders_ExN = jnp.stack([order(jnp.uint32(e)) for e in range(num_epochs)])
    return orders_ExN[epoch_B - first, place_B % num_rows].astype(jnp.int32)


BadRows = Literal["refuse", "drop"]
