"""The tokenizer files of a task's vocabulary, as Hugging Face has them."""

import re
from typing import Any

import numpy as np

from parity_jax.config import require
from parity_jax.tasks import Task, vocabulary

NO_PREFIX = "\x00"  # of no word: the decoder puts a blank before every word but one


def to_tokenizer(task: Task) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json of a task's vocabulary.

    One word for each token, as `to_text` writes it; spaces between words are allowed.
    ConfigError for two tokens of one text, or one of none.
    """
    words, fmt = vocabulary(task), task.format
    for token, word in enumerate(words):
        twice = words.index(word) < token
        allowed = "must be a text of its own for every token, and of more than blanks"
        require(bool(word) and not twice, f"to_text([{token}])", word, allowed)
    by_length = sorted(words, key=len, reverse=True)
    split = {
        "type": "Split",
        "pattern": {"Regex": "|".join(re.escape(word) for word in by_length)},
        "behavior": "Isolated",
        "invert": False,
    }
    special = {"single_word": False, "lstrip": False, "rstrip": False}
    special |= {"normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token, "content": words[token]} | special
            for token in sorted({fmt.pad_id, *fmt.end_ids})
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, split],
        },
        "post_processor": None,
        "decoder": decoder(task, words),
        "model": {
            "type": "WordLevel",
            "vocab": {word: token for token, word in enumerate(words)},
            "unk_token": "",  # no word: unknown text is an error
        },
    }
    return tokenizer, {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": words[fmt.pad_id],
        "eos_token": words[fmt.end_ids[0]],
        "clean_up_tokenization_spaces": False,
        "model_max_length": task.prompt_len + fmt.max_len,
    }


def decoder(task: Task, words: list[str]) -> dict[str, Any]:
    """Joins words as `to_text` does: with a blank, but for those that take none."""
    plain = task.vocab_size - 1  # a word like most

    def is_joined(*tokens: int) -> bool:
        return task.to_text(np.array(tokens)) == "".join(words[t] for t in tokens)

    after = [w for token, w in enumerate(words) if is_joined(plain, token)]
    before = [w for token, w in enumerate(words) if is_joined(token, plain)]
    if len(after) == len(before) == len(words):
        return {"type": "Fuse"}
    joined = [(f" {word}", word) for word in after]
    joined += [(f"{word} ", word) for word in before]
    return {
        "type": "Sequence",
        "decoders": [
            {"type": "WordPiece", "prefix": NO_PREFIX, "cleanup": False},
            {"type": "Fuse"},
            *(
                {"type": "Replace", "pattern": {"String": old}, "content": new}
                for old, new in joined
            ),
        ],
    }
