"""Write one member of a run as a Hugging Face model.

python -m experiments.export_hf DIR OUT --member=seed=0 [--step=N]

OUT gets model.safetensors, config.json, generation_config.json and the tokenizer of the
task; `transformers` loads it as GPT2LMHeadModel or MistralForCausalLM. Other models
(linear, or features of both families) are refused. Exit code 2: a bad argument, 1: a
damaged directory.
"""

from collections.abc import Sequence
from pathlib import Path

from safetensors.numpy import save_file

from experiments.arguments import run, run_parser
from parity_jax.checkpoint import to_arrays
from parity_jax.config import ConfigError, LinearConfig, TransformerConfig, require
from parity_jax.huggingface import to_hf_config, to_state_dict
from parity_jax.results import write_json
from parity_jax.snapshot import only_member, open_run, parse_member
from parity_jax.tokenizer import to_tokenizer
from parity_jax.types import EOS, PAD


def main(argv: Sequence[str]) -> None:
    """Export what the arguments say."""
    parser = run_parser(__doc__, "axis values; needed if the run has several members")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new directory")
    args = parser.parse_args(argv)
    snapshot = open_run(args.directory, args.step, parse_member(args.member))
    only_member(snapshot)
    task, experiment = snapshot.task, snapshot.experiment
    cfg = transformer_config(experiment.model)
    config = to_hf_config(cfg, task, experiment.task)
    tokenizer, tokenizer_config = to_tokenizer(task)
    state = to_state_dict(cfg, to_arrays(snapshot.params(0)))
    require(not args.out.exists(), "OUT", str(args.out), "must not exist yet")
    args.out.mkdir(parents=True)
    save_file(state, args.out / "model.safetensors", metadata={"format": "pt"})
    generation = {"eos_token_id": EOS, "pad_token_id": PAD, "do_sample": False}
    generation |= {"max_new_tokens": task.response_len}
    for name, value in (
        ("config", config),
        ("generation_config", generation),
        ("tokenizer", tokenizer),
        ("tokenizer_config", tokenizer_config),
    ):
        write_json(args.out / f"{name}.json", value)


def transformer_config(cfg: TransformerConfig | LinearConfig) -> TransformerConfig:
    """The model's config if it is a transformer's; ConfigError otherwise."""
    if isinstance(cfg, LinearConfig):
        raise ConfigError("model", cfg.kind, "has no counterpart at Hugging Face")
    return cfg


if __name__ == "__main__":
    run(main)
