"""Write one member of a run as a Hugging Face model.

parity-jax export_hf DIR OUT --member=seed=0 [--step=N] [--debug]

OUT gets model.safetensors, config.json, generation_config.json and the tokenizer of the
task; `transformers` loads it as GPT2LMHeadModel or MistralForCausalLM. Other models
(linear, or features of both families) are refused. Exit code 0: done, 2: a bad
argument, 1: a damaged directory, 75: stopped by a signal; but for 0, OUT is not there.
"""

from collections.abc import Sequence
from pathlib import Path

from safetensors.numpy import save_file

from parity_jax.analysis.snapshot import (
    Snapshot,
    open_snapshot,
    require_one_member,
)
from parity_jax.cli.arguments import reading, run_parser
from parity_jax.config import ConfigError, kind_of, label_text, parse_label, require
from parity_jax.models import ModelConfig, TransformerConfig
from parity_jax.models.huggingface import (
    end_id,
    to_hf_config,
    to_state_dict,
    to_tokenizer,
)
from parity_jax.runs import RunDirectory
from parity_jax.runs.checkpoint import to_arrays
from parity_jax.runs.directory import local_path
from parity_jax.runs.files import whole_directory, write_json


def main(argv: Sequence[str]) -> None:
    """Export what the arguments say."""
    help_text = "axis values; needed if the run has several members"
    parser = run_parser("export_hf", __doc__, help_text)
    parser.add_argument("out", metavar="OUT", help="a new directory")
    args = parser.parse_args(argv)
    path, member = local_path("directory", args.directory), parse_label(args.member)
    out = local_path("OUT", args.out)
    require(not out.exists(), "OUT", args.out, "must not exist yet")
    with reading():
        snapshot = open_snapshot(RunDirectory(path), args.step, member)
        require_one_member(snapshot)
        architecture = export(snapshot, out)
    who = label_text(snapshot.run.labels[0])
    print(f"{out}: {architecture}, {who} of {path} at step {snapshot.step}")


def export(snapshot: Snapshot, out: Path) -> str:
    """Write the files of the one member of a snapshot; the class that loads them."""
    task, cfg = snapshot.task, transformer_config(snapshot.run.model)
    config = to_hf_config(cfg, task, snapshot.run.task)
    tokenizer, tokenizer_config = to_tokenizer(task)
    state = to_state_dict(cfg, to_arrays(snapshot.params(0)))
    generation = {"eos_token_id": end_id(task), "pad_token_id": task.format.pad_id}
    generation |= {"do_sample": False, "max_new_tokens": task.format.max_len}
    with whole_directory(out) as part:
        save_file(state, part / "model.safetensors", metadata={"format": "pt"})
        for name, value in (
            ("config", config),
            ("generation_config", generation),
            ("tokenizer", tokenizer),
            ("tokenizer_config", tokenizer_config),
        ):
            write_json(part / f"{name}.json", value)
    return config["architectures"][0]


def transformer_config(cfg: ModelConfig) -> TransformerConfig:
    """The model's config if it is a transformer's; ConfigError otherwise."""
    if not isinstance(cfg, TransformerConfig):
        kind = kind_of(type(cfg))
        raise ConfigError("model.kind", kind, "has no counterpart at Hugging Face")
    return cfg
