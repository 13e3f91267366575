"""Make a run directory of a Hugging Face model, for other runs to start from.

python -m experiments.import_hf HF_DIR OUT [--task='{"kind": "parity", "num_bits": 16}']

HF_DIR holds config.json and model.safetensors of a GPT2LMHeadModel or a
MistralForCausalLM; weights become float32. Models that `experiments.export_hf` wrote
tell their task, others need --task. OUT is a run of one member (seed=0) with one
checkpoint, at step 0: inspect it, or name it as `parent` of a run, with
`parent_member.seed=0` if that has other seeds. Exit code 2: a bad argument or a
model that ours cannot be, 1: a damaged file.
"""

import hashlib
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError
from safetensors.flax import load_file

from experiments.arguments import Parser, run
from parity_jax.checkpoint import Arrays, CheckpointError, Checkpoints, from_arrays
from parity_jax.config import (
    ConfigError,
    Experiment,
    RunConfig,
    TransformerConfig,
    from_dict,
    require,
)
from parity_jax.huggingface import EXTRA, from_hf_config, from_state_dict
from parity_jax.lineage import record_start
from parity_jax.models import make_model
from parity_jax.results import read_json, write_json
from parity_jax.runs import build, claim_directory, describe
from parity_jax.snapshot import RUN
from parity_jax.tasks import make_task
from parity_jax.types import Params, Task

WEIGHTS = "model.safetensors"


def main(argv: Sequence[str]) -> None:
    """Import what the arguments say."""
    parser = Parser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="HF_DIR")
    parser.add_argument("out", type=Path, metavar="OUT", help="a new directory")
    parser.add_argument("--task", default="", help="config of the task, as JSON")
    args = parser.parse_args(argv)
    require(args.source.is_dir(), "HF_DIR", str(args.source), "must be a directory")
    require(not args.out.exists(), "OUT", str(args.out), "must not exist yet")
    path = args.source / "config.json"
    require(path.exists(), "HF_DIR", str(args.source), "must hold config.json")
    config = read_json(path)
    cfg, task_cfg = from_hf_config(config), read_task(args.task, config)
    task = make_task(task_cfg)
    found, expected = config.get("vocab_size"), task.vocab_size
    require(found == expected, "vocab_size", found, f"must be {expected}, the task's")
    params = read_params(args.source / WEIGHTS, cfg, task)
    experiment = Experiment(
        task=task_cfg, model=cfg, runs=FrozenDict({RUN: RunConfig()})
    )
    write_run(args.out, experiment, jax.tree.map(lambda x: x[None], params))
    content = hashlib.sha256((args.source / WEIGHTS).read_bytes()).hexdigest()
    lineage = args.out / "lineage.json"
    imported = {"from": str(args.source), "safetensors_sha256": content}
    write_json(lineage, read_json(lineage) | {"imported": imported})


def read_task(text: str, config: dict[str, Any]) -> Any:
    """The task's config: what was given, else what the exported model says."""
    try:
        value = json.loads(text) if text else config.get(EXTRA, {}).get("task")
    except json.JSONDecodeError:
        raise ConfigError("task", text, "must be JSON") from None
    require(value is not None, "task", text, "is needed: the model does not tell it")
    try:
        return from_dict(typing.get_type_hints(Experiment)["task"], value)
    except ConfigError as error:
        raise error.under("task") from None


def read_params(path: Path, cfg: TransformerConfig, task: Task) -> Params:
    """The weights as parameters of the model, float32."""
    require(
        path.exists(), "HF_DIR", str(path.parent), f"must hold {WEIGHTS}, unsharded"
    )
    try:
        tensors: Arrays = {name: np.asarray(x) for name, x in load_file(path).items()}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    template = jax.eval_shape(make_model(cfg, task).init, jax.random.key(0))
    shapes = {k: x.shape for k, x in flatten_dict(template, sep=".").items()}
    return from_arrays(from_state_dict(cfg, tensors, shapes), template)


def write_run(directory: Path, experiment: Experiment, params_P: Params | None) -> None:
    """A run directory with one checkpoint, at step 0, of these (or new) parameters."""
    population = build(experiment, RUN)
    states = population.init(params_P)
    claim_directory(directory, describe(experiment, RUN))
    checkpoints = Checkpoints(directory)
    record_start(directory, experiment.runs[RUN].stage.kind, None)
    checkpoints.save(0, states)
    checkpoints.wait()
    checkpoints.close()
    finished = {name: getattr(states, name).tolist() for name in ("step", "status")}
    write_json(directory / "finished.json", finished)


if __name__ == "__main__":
    run(main)
