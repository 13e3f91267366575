"""Tokenizers: of a model's folder, or byte-pair encoding that is trained on the rows.

They are of the package `tokenizers`, which is imported when one is needed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from textwrap import shorten
from typing import Any

from parity_jax.config import ConfigError, expanded, require
from parity_jax.tasks.text.rows import optional

PAD, END = "<pad>", "<end>"
MAX_VOCAB = 2**20  # tokens of byte-pair encoding that is trained here
# What is read of a folder.
TOKENIZER, TEMPLATE = "tokenizer.json", "chat_template.jinja"
OPTIONS = ("generation_config.json", "config.json", "tokenizer_config.json")
DATE = "26 Jul 2024"  # of templates that would else ask the clock


@dataclass(frozen=True)
class TokenizerConfig:
    """One of both."""

    folder: str = ""  # of a Hugging Face model
    # Of byte-pair encoding trained on the questions and solutions; fewer tokens where
    # they have no more pairs.
    vocab_size: int = 0

    def __post_init__(self) -> None:
        one = bool(self.folder) != bool(self.vocab_size)
        allowed = "must be given, or else vocab_size (not both)"
        require(one, "folder", self.folder, allowed)
        size, allowed = self.vocab_size, "must be at least 258: pad, end and all bytes"
        require(size == 0 or size >= 258, "vocab_size", size, allowed)
        require(size <= MAX_VOCAB, "vocab_size", size, f"must be at most {MAX_VOCAB}")

    def files(self) -> tuple[str, ...]:
        """What is read of the folder."""
        names = (TOKENIZER, TEMPLATE, *OPTIONS) if self.folder else ()
        return tuple(f"{self.folder}/{name}" for name in names)


class Tokenizer:
    """Text to tokens and back; the special tokens of a model."""

    def __init__(
        self,
        inner: Any,
        pad_id: int,
        end_ids: tuple[int, ...],
        bos_id: int | None = None,
        chat_template: Any = "",
        special: dict[str, str] | None = None,
    ):
        self._inner, self.pad_id, self.end_ids = inner, pad_id, end_ids
        self.bos_id, self.chat_template = bos_id, chat_template
        self._special = special or {}

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return size_of(self._inner)

    @property
    def json(self) -> str:
        """tokenizer.json, of the special tokens that are used here as well."""
        special = {"pad": self.pad_id, "end": self.end_ids, "bos": self.bos_id}
        chat = self.chat_template
        text = chat if isinstance(chat, str) else json.dumps(chat)
        return self._inner.to_str() + json.dumps(special) + text

    def files(self) -> dict[str, str]:
        """What `transformers` reads of one that was trained here."""
        options = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": PAD,
            "eos_token": END,
            "clean_up_tokenization_spaces": False,
        }
        return {
            "tokenizer.json": self._inner.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(options, indent=2),
        }

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of every text; none is put before or behind it.

        ConfigError for texts that the tokenizer cannot take.
        """
        try:
            for text in texts:
                text.encode()
            found = self._inner.encode_batch([*texts], add_special_tokens=False)
        except UnicodeEncodeError:
            allowed = "must be a text that UTF-8 can hold"
            raise ConfigError("text", text, allowed) from None
        except Exception as error:  # the package raises nothing more special
            bad = next(text for text in texts if not self.takes(text))
            allowed = f"has no tokens in tokenizer.folder: {error}"
            raise ConfigError("text", shorten(bad, 80), allowed) from None
        return [encoding.ids for encoding in found]

    def takes(self, text: str) -> bool:
        """Whether a text has tokens."""
        try:
            self._inner.encode(text)
        except Exception:  # the package raises nothing more special
            return False
        return True

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones included, and of unknown ones `<id>`.

        A model may have more tokens than its tokenizer.
        """
        parts = []
        for is_known, ids in groupby(tokens, self._known.__contains__):
            if is_known:
                parts.append(self._inner.decode([*ids], skip_special_tokens=False))
            else:
                parts += [f"<{i}>" for i in ids]
        return "".join(parts)

    @cached_property
    def _known(self) -> frozenset[int]:
        return frozenset(self._inner.get_vocab(with_added_tokens=True).values())

    def begun(self, ids: list[int]) -> list[int]:
        """A prompt that begins with the model's first token once, if it has one."""
        if self.bos_id is None or ids[:1] == [self.bos_id]:
            return ids
        return [self.bos_id, *ids]

    def chat(self, message: str) -> str:
        """A user's message up to where the model answers, by the model's template."""
        require(bool(self.chat_template), "template.form", "chat", "has no template")
        is_one = isinstance(self.chat_template, str)
        allowed = "chat_template of tokenizer_config.json must be one text"
        require(is_one, "template.form", "chat", allowed)
        sandbox = optional("jinja2.sandbox", "template.form=chat")
        options = {"trim_blocks": True, "lstrip_blocks": True}
        world = sandbox.ImmutableSandboxedEnvironment(
            **options, extensions=["jinja2.ext.loopcontrols"]
        )
        world.globals["raise_exception"] = refuse_message
        try:
            text = world.from_string(self.chat_template).render(
                messages=[{"role": "user", "content": message}],
                add_generation_prompt=True,
                date_string=DATE,
                **self._special,
            )
        except ConfigError:
            raise
        except Exception as error:  # a template is a program of somebody else's
            allowed = f"fails by the model's template: {type(error).__name__}: {error}"
            raise ConfigError("template.form", "chat", allowed) from None
        return text


def size_of(inner: Any) -> int:
    """One more than the largest id of the package's tokenizer."""
    return max(inner.get_vocab(with_added_tokens=True).values()) + 1


def refuse_message(reason: Any) -> None:
    """What templates call `raise_exception`."""
    raise ConfigError("template.form", "chat", f"the model's template says: {reason}")


def trained(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Byte-pair encoding of these texts; every text can be encoded."""
    lib = optional("tokenizers", "tokenizer.vocab_size")
    inner = lib.Tokenizer(lib.models.BPE())
    inner.pre_tokenizer = lib.pre_tokenizers.Sequence(
        [
            lib.pre_tokenizers.Digits(individual_digits=True),
            lib.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    inner.decoder = lib.decoders.ByteLevel()
    trainer = lib.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END],
        initial_alphabet=lib.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return Tokenizer(inner, pad_id=0, end_ids=(1,))


def from_folder(folder: str) -> Tokenizer:
    """The tokenizer of a Hugging Face folder; ConfigError names what is missing.

    What ends a response is what generation_config.json, config.json and the tokenizer
    name. The token of padding must not be among them: where it is, another one that is
    special, or else the first token of all, stands for it. Where it pads, behind the
    end, it never carries loss.
    """
    path = expanded("tokenizer.folder", folder)
    lib = optional("tokenizers", "tokenizer.folder")
    file = path / TOKENIZER
    require(file.is_file(), "tokenizer.folder", folder, "has no tokenizer.json")
    try:
        inner = lib.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the package raises nothing more special
        text = f"tokenizer.json cannot be read: {error}"
        raise ConfigError("tokenizer.folder", folder, text) from None
    inner.no_truncation()
    inner.no_padding()
    generation, model, options = (mapping(path / name) for name in OPTIONS)
    special = {
        name: text_of(folder, name, options.get(name))
        for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        if options.get(name)
    }
    ids = {name: inner.token_to_id(text) for name, text in special.items()}
    ends = [ids.get("eos_token")]
    size = size_of(inner)
    for name, config in zip(OPTIONS, (generation, model), strict=False):
        value = config.get("eos_token_id")
        given = value if isinstance(value, list) else [value]
        for token in given:
            is_id = type(token) is int and 0 <= token < size
            told = f"{name}: eos_token_id={value!r}: must be tokens, below {size}"
            require(token is None or is_id, "tokenizer.folder", folder, told)
        ends += given
    end_ids = tuple(dict.fromkeys(e for e in ends if e is not None))
    require(bool(end_ids), "tokenizer.folder", folder, "names no token that ends")
    others = [ids.get("pad_token"), ids.get("unk_token"), *range(len(end_ids) + 1)]
    pad_id = next(t for t in others if t is not None and t not in end_ids)
    first = inner.encode("", add_special_tokens=True).ids[:1]
    bos_id = ids.get("bos_token")
    begins = bos_id is not None and first == [bos_id]
    jinja, chat = path / TEMPLATE, options.get("chat_template") or ""
    if jinja.is_file():
        try:
            chat = jinja.read_text(encoding="utf-8")
        except ValueError as error:
            told = f"{TEMPLATE} cannot be read: {error}"
            raise ConfigError("tokenizer.folder", folder, told) from None
    return Tokenizer(inner, pad_id, end_ids, bos_id if begins else None, chat, special)


def mapping(path: Path) -> dict[str, Any]:
    """A JSON file of the folder; empty if it is not there."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("tokenizer.folder", str(path), f"damaged: {error}") from None
    allowed = "damaged: must be a mapping"
    require(isinstance(value, dict), "tokenizer.folder", str(path), allowed)
    return dict(value)


def text_of(folder: str, name: str, token: Any) -> str:
    """The text of a special token, which may be written as a mapping."""
    text = token.get("content") if isinstance(token, dict) else token
    if isinstance(text, str):
        return text
    allowed = f"tokenizer_config.json: {name}={token!r}: must be a text"
    raise ConfigError("tokenizer.folder", folder, allowed)
