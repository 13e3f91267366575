"""Write one member of a run as a Hugging Face model.

parity-jax export_hf DIR OUT --member=seed=0 [--step=N] [--debug]

OUT gets safetensors (several files above 5 GB), config.json, generation_config.json and
the tokenizer: that of the task, or of the Hugging Face model that the weights come from
if its vocabulary is larger. `transformers` loads it as the class of the family. Other
models (linear, or features of several families) are refused. Exit code 0: done, 2: a
bad argument, 1: a damaged directory, 75: stopped by a signal; but for 0, OUT is not
there.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from parity_jax.analysis.inspection import ancestry
from parity_jax.analysis.snapshot import (
    Snapshot,
    require_one_member,
)
from parity_jax.cli.arguments import opened, reading, run_parser
from parity_jax.config import ConfigError, expanded, kind_of, label_text
from parity_jax.models import ModelConfig, TransformerConfig
from parity_jax.models.huggingface import (
    MAX_BYTES,
    copy_tokenizer,
    end_id,
    to_hf_config,
    to_state_dict,
    to_tokenizer,
    write_weights,
)
from parity_jax.runs import RunDirectory
from parity_jax.runs.checkpoint import to_arrays
from parity_jax.runs.directory import new_path
from parity_jax.runs.files import whole_directory, write_json, write_text
from parity_jax.runs.lineage import Imported
from parity_jax.tasks import Task, Text


def main(argv: Sequence[str]) -> None:
    """Export what the arguments say."""
    help_text = "axis values; needed if the run has several members"
    parser = run_parser("export_hf", __doc__, help_text)
    parser.add_argument("out", metavar="OUT", help="a new directory")
    args = parser.parse_args(argv)
    out = new_path("OUT", args.out)
    with reading():
        snapshot = opened(args)
        require_one_member(snapshot, args.member)
        architecture = export(snapshot, out)
    who = f"{label_text(snapshot.run.labels[0])} of {snapshot.directory.path}"
    print(f"{out}: {architecture}, {who} at step {snapshot.step}")


def export(snapshot: Snapshot, out: Path) -> str:
    """Write the files of the one member of a snapshot; the class that loads them."""
    task, cfg = snapshot.task, transformer_config(snapshot.run.model)
    origin = imported_origin(snapshot.directory)
    kind = "" if origin is None else origin.model_type
    config = to_hf_config(cfg, task, snapshot.run.task, kind)
    generation = {"eos_token_id": end_id(task), "pad_token_id": task.format.pad_id}
    generation |= {"do_sample": False, "max_new_tokens": task.format.max_len}
    tensors = to_state_dict(cfg, to_arrays(snapshot.params(0)))
    with whole_directory(out) as part:
        write_weights(part, tensors, MAX_BYTES)
        write_json(part / "config.json", config)
        write_json(part / "generation_config.json", generation)
        write_tokenizer(part, task, cfg, origin)
    return str(config["architectures"][0])


def imported_origin(directory: RunDirectory) -> Imported | None:
    """The Hugging Face model that a run and its parents go back to, if they do.

    A warning says of a parent that is not there any more that it is not known.
    """
    oldest = ancestry(directory)[-1]
    if oldest["content"] == "not found":
        told = f"{oldest['run']} is not there any more: if its weights came from a"
        told += " Hugging Face model, its family and its tokenizer are not known here"
        print(f"warning: {told}", file=sys.stderr)
    entry = oldest.get("imported")
    return None if entry is None else Imported(**entry)


def write_tokenizer(
    directory: Path, task: Task, cfg: TransformerConfig, origin: Imported | None
) -> None:
    """The task's tokenizer, or the one of the weights if it knows more words."""
    source = "" if origin is None or cfg.vocab_size <= task.vocab_size else origin.path
    if isinstance(task, Text):
        source = task.config.tokenizer.folder
        if not source:
            for file, text in task.tokenizer.files().items():
                write_text(directory / file, text)
            return
    if source:
        if not copy_tokenizer(expanded("tokenizer.folder", source), directory):
            where = f"{source}: no tokenizer is there any more; it is left out"
            print(f"warning: {where}", file=sys.stderr)
        return
    for name, value in zip(
        ("tokenizer", "tokenizer_config"), to_tokenizer(task), strict=True
    ):
        write_json(directory / f"{name}.json", value)


def transformer_config(cfg: ModelConfig) -> TransformerConfig:
    """The model's config if it is a transformer's; ConfigError otherwise."""
    if not isinstance(cfg, TransformerConfig):
        kind = kind_of(type(cfg))
        raise ConfigError("model.kind", kind, "has no counterpart at Hugging Face")
    return cfg
