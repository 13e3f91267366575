"""What is in the folder of a Hugging Face model; no tensor is read."""

import math
from typing import Any

from parity_jax.config import ConfigError, to_dict
from parity_jax.models.huggingface import TOKENIZER, HfFolder, from_hf_config

END_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def inspect_folder(folder: HfFolder) -> dict[str, Any]:
    """Family, our config of it or why there is none, tensors, tokens that are special.

    FolderError for files that are missing or damaged.
    """
    config, shapes = folder.config, folder.shapes()
    try:
        model, refused = to_dict(from_hf_config(config)), None
    except ConfigError as error:
        model, refused = None, str(error)
    sizes = [math.prod(shape) for shape, _ in shapes.values()]
    names = (path.name for path in {*folder.files.values()})
    return {
        "directory": str(folder.path),
        "model_type": config.get("model_type"),
        "model": model,
        "refused": refused,
        "num_parameters": sum(sizes),
        "files": sorted(names),
        "tokenizer": [x for x in TOKENIZER if (folder.path / x).is_file()],
        "special": {name: config.get(name) for name in END_IDS},
        "tensors": [
            {"name": name, "shape": list(shape), "dtype": dtype}
            for name, (shape, dtype) in shapes.items()
        ],
    }
