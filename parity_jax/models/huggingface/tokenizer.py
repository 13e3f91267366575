"""The tokenizer files of a task's vocabulary, as Hugging Face has them."""

import re
from typing import Any

import numpy as np

from parity_jax.tasks import vocabulary
from parity_jax.types import EOS, PAD, Task


def to_tokenizer(task: Task) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json and tokenizer_config.json of a task's vocabulary.

    One word for each token, as `to_text` writes it; spaces between words are allowed.
    """
    words = vocabulary(task)
    by_length = sorted(words, key=len, reverse=True)
    pattern = "|".join(re.escape(word) for word in by_length)
    last = np.array([task.vocab_size - 2, task.vocab_size - 1])
    joined = task.to_text(last) == words[-2] + words[-1]
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
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
            {"id": token, "content": words[token]} | special for token in (PAD, EOS)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, split],
        },
        "post_processor": None,
        "decoder": {"type": "Fuse"} if joined else None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: token for token, word in enumerate(words)},
            "unk_token": "",  # no word: unknown text is an error
        },
    }
    return tokenizer, {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": words[PAD],
        "eos_token": words[EOS],
        "clean_up_tokenization_spaces": False,
        "model_max_length": task.prompt_len + task.response_len,
    }
