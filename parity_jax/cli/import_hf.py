"""Make a run directory of a Hugging Face model, for other runs to start from.

parity-jax import_hf HF_DIR OUT [--task='{"kind": "parity", "num_bits": 16}'] [--debug]

HF_DIR holds config.json and safetensors of a GPT-2, Llama, Mistral or Qwen 2 or 3;
weights become float32. Models that `parity-jax export_hf` wrote tell their task, others
need --task. OUT is a run of one member (seed=0) with one checkpoint, at step 0: inspect
it, or play. A run can also name HF_DIR itself as its `parent`. Exit code 0: done, 2: a
bad argument or a model that ours cannot be, 1: a damaged file, 75: stopped by a signal;
but for 0, OUT is not there.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax.core import FrozenDict

from parity_jax.cli.arguments import Parser, reading
from parity_jax.cli.text import assignments
from parity_jax.config import (
    ConfigError,
    from_dict,
    kind_of,
    require,
    to_dict,
    under,
    unique,
)
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.models import ModelConfig
from parity_jax.models.huggingface import EXTRA, HfFolder, is_hf_folder
from parity_jax.runs import ResolvedRun, RunDirectory, make_program, resolve
from parity_jax.runs.directory import local_path, new_path
from parity_jax.runs.files import whole_directory
from parity_jax.runs.lineage import Imported, Lineage, this_process
from parity_jax.runs.start import imported_from
from parity_jax.tasks import TaskConfig
from parity_jax.types import Params


def main(argv: Sequence[str]) -> None:
    """Import what the arguments say."""
    parser = Parser("import_hf", __doc__)
    parser.add_argument("source", metavar="HF_DIR")
    parser.add_argument("out", metavar="OUT", help="a new directory")
    parser.add_argument("--task", default="", help="config of the task, as JSON")
    args = parser.parse_args(argv)
    source, out = local_path("HF_DIR", args.source), new_path("OUT", args.out)
    with reading():
        allowed = "must be the directory of a Hugging Face model"
        require(is_hf_folder(source), "HF_DIR", args.source, allowed)
        folder = HfFolder(source)
        task_cfg = read_task(args.task, folder.config)
        task = task_cfg.make()
        cfg = folder.model(task)
        cfg.check(task_cfg)
        run = imported_run(task_cfg, cfg)
        params = folder.load(cfg, make_program(run).member_params())
        with whole_directory(out) as part:
            write_run(RunDirectory(part), run, params, imported_from(folder))
    told = assignments(to_dict(task_cfg))
    print(f"{out}: a run at step 0, parameters of {source} (task {told})")


def read_task(text: str, config: Mapping[str, Any]) -> TaskConfig:
    """The task's config: what was given, else what the exported model says."""
    extra = config.get(EXTRA)
    value = extra.get("task") if isinstance(extra, dict) else None
    if text:
        try:
            value = json.loads(text, object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            raise ConfigError("task", text, f"must be JSON: {error}") from None
    require(value is not None, "task", text, "is needed: the model does not tell it")
    with under("task"):
        return from_dict(TaskConfig, value)


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
    with directory.checkpoints(run) as checkpoints:
        checkpoints.save(0, states, {}, -1)
        checkpoints.wait()
    directory.write_finished(states)
