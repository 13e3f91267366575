"""Make a run directory of a Hugging Face model, for other runs to start from.

parity-jax import_hf HF_DIR OUT [--task='{"kind": "parity", "num_bits": 16}'] [--debug]

HF_DIR holds config.json and model.safetensors of a GPT2LMHeadModel or a
MistralForCausalLM; weights become float32. Models that `parity-jax export_hf` wrote
tell their task, others need --task. OUT is a run of one member (seed=0) with one
checkpoint, at step 0: inspect it, or name it as `parent` of a run, with
`parent_member.seed=0` if that has other seeds. Exit code 0: done, 2: a bad argument or
a model that ours cannot be, 1: a damaged file, 75: stopped by a signal; but for 0, OUT
is not there.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError
from safetensors.flax import load_file

from parity_jax.cli.arguments import Parser, reading
from parity_jax.cli.text import assignments
from parity_jax.config import (
    ConfigError,
    from_dict,
    kind_of,
    require,
    to_dict,
    under,
)
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.models import Model, ModelConfig, TransformerConfig
from parity_jax.models.huggingface import EXTRA, from_hf_config, from_state_dict
from parity_jax.runs import ResolvedRun, RunDirectory, RunError, make_program, resolve
from parity_jax.runs.checkpoint import from_arrays
from parity_jax.runs.directory import local_path
from parity_jax.runs.files import read_json, whole_directory
from parity_jax.runs.lineage import Imported, Lineage, this_process
from parity_jax.tasks import TaskConfig
from parity_jax.types import Params

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def main(argv: Sequence[str]) -> None:
    """Import what the arguments say."""
    parser = Parser("import_hf", __doc__)
    parser.add_argument("source", metavar="HF_DIR")
    parser.add_argument("out", metavar="OUT", help="a new directory")
    parser.add_argument("--task", default="", help="config of the task, as JSON")
    args = parser.parse_args(argv)
    source, out = local_path("HF_DIR", args.source), local_path("OUT", args.out)
    for name in (CONFIG, WEIGHTS):
        allowed = f"must be a directory with {CONFIG} and {WEIGHTS} (unsharded)"
        require((source / name).is_file(), "HF_DIR", args.source, allowed)
    require(not out.exists(), "OUT", args.out, "must not exist yet")
    with reading():
        config = read_config(source / CONFIG)
        cfg, task_cfg = from_hf_config(config), read_task(args.task, config)
        task = task_cfg.make()
        found, allowed = config.get("vocab_size"), f"must be {task.vocab_size}"
        require(found == task.vocab_size, "vocab_size", found, f"{allowed}, the task's")
        params = read_params(source / WEIGHTS, cfg, cfg.make(task))
        content = hashlib.sha256((source / WEIGHTS).read_bytes()).hexdigest()
        imported = Imported(str(source.resolve()), content)
        with whole_directory(out) as part:
            run = imported_run(task_cfg, cfg)
            write_run(RunDirectory(part), run, params, imported)
    told = assignments(to_dict(task_cfg))
    print(f"{out}: a run at step 0, parameters of {source} (task {told})")


def read_config(path: Path) -> dict[str, Any]:
    """config.json; RunError if it is not a mapping."""
    config = read_json(path)
    if not isinstance(config, dict):
        raise RunError(f"{path}: damaged: must be a mapping")
    return config


def read_task(text: str, config: Mapping[str, Any]) -> TaskConfig:
    """The task's config: what was given, else what the exported model says."""
    extra = config.get(EXTRA)
    value = extra.get("task") if isinstance(extra, dict) else None
    if text:
        try:
            value = json.loads(text)
        except ValueError:
            raise ConfigError("task", text, "must be JSON") from None
    require(value is not None, "task", text, "is needed: the model does not tell it")
    with under("task"):
        return from_dict(TaskConfig, value)


def read_params(path: Path, cfg: TransformerConfig, model: Model) -> Params:
    """The weights as parameters of the model, float32."""
    try:
        tensors = {name: np.asarray(x) for name, x in load_file(path).items()}
    except SafetensorError as error:
        raise RunError(f"{path}: cannot be read: {error}") from None
    template = jax.eval_shape(model.init, jax.random.key(0))
    shapes = {k: x.shape for k, x in flatten_dict(template, sep=".").items()}
    return from_arrays(from_state_dict(cfg, tensors, shapes), template)


def imported_run(task: TaskConfig, model: ModelConfig) -> ResolvedRun:
    """One member that has not trained: stage and numbers are the defaults."""
    runs: FrozenDict[str, RunConfig] = FrozenDict({"imported": RunConfig(num_steps=1)})
    return resolve(Experiment(task=task, model=model, runs=runs))["imported"]


def write_run(
    directory: RunDirectory, run: ResolvedRun, params: Params, imported: Imported
) -> None:
    """The files of a run whose one member has these parameters, at step 0."""
    states = make_program(run).init(jax.tree.map(lambda x: x[None], params))
    directory.write_config(run)
    stage = kind_of(type(run.stage))
    directory.write_lineage(Lineage(stage, this_process(), imported=imported))
    with directory.checkpoints() as checkpoints:
        checkpoints.save(0, states, {}, -1)
        checkpoints.wait()
    directory.write_finished(states)
