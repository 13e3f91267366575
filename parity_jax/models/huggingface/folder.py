"""The folder of a Hugging Face model: config.json and safetensors, one file or several.

Tensors are read one by one. What is missing or damaged is a `FolderError` of one line.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from parity_jax.config import (
    ConfigError,
    RunError,
    differences,
    expanded,
    lines_of,
    require,
    to_dict,
    unknown_name,
)
from parity_jax.models.huggingface.config import for_task, from_hf_config
from parity_jax.models.huggingface.weights import load
from parity_jax.models.model import ModelConfig
from parity_jax.models.transformer import TransformerConfig
from parity_jax.tasks import Task
from parity_jax.types import Params

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
MAX_BYTES = 5 * 10**9  # of a file of weights; more come in several
# What a tokenizer consists of, in the files of all its kinds.
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
TYPES = ("F32", "BF16", "F16", "F64")  # as safetensors calls them
# Fields of a model that its weights do not depend on.
FREE = ("dtype", "scan", "remat", "init_std", "gradient_rows")


class FolderError(OSError):
    """Files of a model that are missing or damaged; its message is one line."""


def is_hf_folder(path: Path) -> bool:
    """Whether there is a config.json that says what a model it is of."""
    if not (path / CONFIG).is_file():
        return False
    config = read_mapping(path / CONFIG)
    return "model_type" in config or "architectures" in config


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON file; FolderError if it is not a mapping."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise FolderError(f"{path}: missing") from None
    except OSError as error:
        raise FolderError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of the text encoding or of JSON
        raise FolderError(f"{path}: damaged: {error}") from None
    if not isinstance(value, dict):
        raise FolderError(f"{path}: damaged: must be a mapping")
    return value


class HfFolder:
    """A model to read."""

    def __init__(self, path: str | Path):
        self.path = expanded("folder", path)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return read_mapping(self.path / CONFIG)

    @cached_property
    def files(self) -> dict[str, Path]:
        """The file of every tensor, by its name."""
        if (self.path / INDEX).is_file():
            if (self.path / WEIGHTS).is_file():
                both = f"has {WEIGHTS} and {INDEX}: which one is meant? Take one away"
                raise FolderError(f"{self.path}: {both}")
            index = read_mapping(self.path / INDEX).get("weight_map")
            if not isinstance(index, dict) or not all(
                isinstance(name, str) for name in index.values()
            ):
                raise FolderError(f"{self.path / INDEX}: damaged: no weight_map")
            for file in index.values():
                if Path(file).name != file:
                    told = f"{file!r} is not a file of this folder"
                    raise FolderError(f"{self.path / INDEX}: damaged: {told}")
            found = {name: self.path / file for name, file in index.items()}
            there = {p: set(names_in(p)) for p in sorted({*found.values()})}
            for name, file in found.items():
                if name not in there[file]:
                    raise FolderError(f"{file}: {name} is missing, which {INDEX} names")
            for file, names in there.items():
                for name in sorted(names):
                    if found.get(name) != file:
                        where = found[name].name if name in found else "no file"
                        told = f"{name} is in {where}, as {INDEX} says"
                        raise FolderError(f"{file}: {told}")
            return found
        path = self.path / WEIGHTS
        if not path.is_file():
            raise FolderError(f"{self.path}: neither {WEIGHTS} nor {INDEX} is there")
        return dict.fromkeys(names_in(path), path)

    def read(self, name: str) -> np.ndarray:
        """One tensor, as it is stored."""
        path = self.files[name]
        try:
            with safe_open(path, framework="numpy") as file:
                array: np.ndarray = file.get_tensor(name)
        except (SafetensorError, TypeError, OSError) as error:
            raise FolderError(f"{path}: {name} cannot be read: {error}") from None
        return array

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of every tensor; none is read."""
        found = {}
        for path in sorted({*self.files.values()}):
            with safe_open(path, framework="numpy") as file:
                for name in sorted(file.keys()):
                    tensor = file.get_slice(name)
                    found[name] = (tuple(tensor.get_shape()), tensor.get_dtype())
        return found

    def sha256(self) -> str:
        """Of the weights: of the one file, or of the digests of several."""
        digests = []
        for path in sorted({*self.files.values()}):
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        if len(digests) == 1:
            return digests[0]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def model(self, task: Task, **overrides: Any) -> TransformerConfig:
        """The config of the model; what it does not fix can be overridden (FREE)."""
        cfg = for_task(from_hf_config(self.config), task)
        for name, value in overrides.items():
            if name not in FREE:
                raise unknown_name(name, value, FREE)
        return dataclasses.replace(cfg, **overrides)

    def check(self, cfg: ModelConfig, task: Task) -> None:
        """ConfigError if a run's model is another one than that of the weights."""
        there = to_dict(self.model(task))
        here = to_dict(cfg.resolved())
        there |= {name: here.get(name) for name in FREE}
        found = differences(there, here, "model")
        if found:
            allowed = f"must be as in {self.path / CONFIG}: {lines_of(found)}"
            raise ConfigError(found[0].path, found[0].new, allowed)

    def check_types(self) -> None:
        """ConfigError for a tensor whose numbers are of a type that is not read."""
        for name, (_, dtype) in self.shapes().items():
            allowed = f"must be {', '.join(TYPES)}"
            require(dtype in TYPES, f"{name}.dtype", dtype, allowed)

    def load(self, cfg: ModelConfig, template: Any) -> Params:
        """The weights as parameters like the template's arrays, see `weights.load`."""
        self.check_types()
        assert isinstance(cfg, TransformerConfig)  # `check` sees to it
        return load(cfg, template, [*self.files], self.read)


def names_in(path: Path) -> list[str]:
    """The tensors of a file."""
    try:
        with safe_open(path, framework="numpy") as file:
            return [*file.keys()]
    except (SafetensorError, OSError) as error:
        raise FolderError(f"{path}: cannot be read: {error}") from None


def write_weights(
    directory: Path, tensors: Iterable[tuple[str, np.ndarray]], max_bytes: int
) -> None:
    """Write model.safetensors, or several files and an index if it would be larger."""
    parts: list[tuple[Path, list[str]]] = []
    held: dict[str, np.ndarray] = {}
    total = 0

    def flush() -> None:
        path = directory / f"part-{len(parts)}"
        try:
            save_file(held, path, metadata={"format": "pt"})
        except SafetensorError as error:  # of a full disk, say
            raise RunError(f"{directory}: {error}") from None
        parts.append((path, [*held]))
        held.clear()

    for name, tensor in tensors:
        if held and sum(x.nbytes for x in held.values()) + tensor.nbytes > max_bytes:
            flush()
        held[name] = tensor
        total += tensor.nbytes
    flush()
    if len(parts) == 1:
        parts[0][0].rename(directory / WEIGHTS)
        return
    weight_map: dict[str, str] = {}
    for n, (path, names) in enumerate(parts, 1):
        name = f"model-{n:05}-of-{len(parts):05}.safetensors"
        path.rename(directory / name)
        weight_map |= dict.fromkeys(names, name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def copy_tokenizer(source: Path, directory: Path) -> bool:
    """Copy the tokenizer's files; whether there are any."""
    found = [source / name for name in TOKENIZER if (source / name).is_file()]
    for path in found:
        shutil.copyfile(path, directory / path.name)
    return bool(found)
