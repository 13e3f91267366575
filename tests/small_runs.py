"""Runs that cost next to nothing: a random walk as the stage, everything else real."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from parity_jax.config import StoppedError
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.metrics import Mean
from parity_jax.models import LinearConfig
from parity_jax.population import PopulationConfig
from parity_jax.runs import RunDirectory, run_experiment
from parity_jax.runs.checkpoint import digest, to_arrays
from parity_jax.stages import Stage, StageConfig
from parity_jax.stages.stage import StepKeys
from parity_jax.tasks import ParityConfig
from parity_jax.types import RUNNING, StageState

DIVERGES = 1e30  # a learning rate


@dataclass(frozen=True)
class WalkConfig(StageConfig):
    """Random steps with momentum; parameters, optimizer and metrics of three numbers.

    It is named "small_runs:WalkConfig", a stage of a user's own.
    """

    batch_size: int = 2

    @property
    def sequences_per_step(self):
        return self.batch_size

    def make(self, task, model, evaluate):
        def init(key, hypers, params=None):
            k_init, k_steps = jax.random.split(key)
            params = (
                {"w": jax.random.normal(k_init, (3,))} if params is None else params
            )
            return StageState(
                key=k_steps,
                step=jnp.int32(0),
                params=params,
                opt_state={"mean": jnp.zeros(3)},
                hypers=hypers,
                status=jnp.int32(RUNNING),
                reference=None,
            )

        def step(state, data):
            push = jax.random.normal(StepKeys.of(state).data, (self.batch_size, 3))
            scale = state.hypers.temperature * state.hypers.p_cot / 0.25
            push = scale * push + state.hypers.beta
            w, mean = state.params["w"], state.opt_state["mean"] * 0.9 + push.mean(0)
            w += state.hypers.learning_rate * mean * (1 + w**2)
            metrics = {
                "loss": Mean.over(w**2),
                "clip_ratio/low_mean": Mean.over(push > 0),  # a slash, as others have
            }
            state = state._replace(params={"w": w}, opt_state={"mean": mean})
            return state._replace(step=state.step + 1), metrics

        def scores(state, data):
            w, prompts = state.params["w"], data.eval_prompts
            token = jnp.zeros(1) if prompts is None else prompts.token
            return {"greedy/accuracy": Mean.over(w > 0), "token": Mean.over(token)}

        return Stage(init, step, scores)


WALK = RunConfig(
    stage=WalkConfig(),
    hypers=Hypers(learning_rate=1e-2),
    num_steps=4,
    log_every=1,
    eval_every=2,
    checkpoint_every=2,
)


def walk(parent: str = "", **fields: Any) -> RunConfig:
    """Four steps, a record of each; checkpoints 0, 2, 4."""
    return dataclasses.replace(WALK, parent=parent, **fields)


def walks(*, seeds: tuple[int, ...] = (0, 1), **runs: RunConfig) -> Experiment:
    """An experiment of two seeds."""
    return Experiment(
        task=ParityConfig(4),
        model=LinearConfig(),
        axes=FrozenDict({"seed": seeds}),
        runs=FrozenDict(runs),
        population=PopulationConfig(num_devices=1, vmap_width=1),
    )


def train(experiment: Experiment, workdir: Path, *only: str) -> bool:
    """Execute or continue it."""
    return run_experiment(experiment, workdir, only, quiet=True)


def train_until(step: int, experiment: Experiment, workdir: Path) -> None:
    """Ask to stop as soon as the first run has a record of a step; it must."""
    run = RunDirectory(workdir / next(iter(experiment.runs)))
    stop(experiment, workdir, lambda: run.trained_steps() >= step)


def stop(
    experiment: Experiment, workdir: Path, should_stop: Callable[[], bool]
) -> None:
    """Execute or continue it until it is stopped."""
    try:
        run_experiment(experiment, workdir, quiet=True, should_stop=should_stop)
    except StoppedError as error:
        assert str(error).endswith("and saved")
    else:
        raise AssertionError("it was not stopped")


def read(run: Path, step: int) -> dict[str, Any]:
    """The arrays of a checkpoint."""
    with RunDirectory(run).saved() as checkpoints:
        return checkpoints.read(step).arrays


def digests(run: Path) -> dict[int, str]:
    """Of every checkpoint."""
    with RunDirectory(run).saved() as checkpoints:
        return {n: digest(checkpoints.read(n).arrays) for n in checkpoints.steps()}


def records(run: Path) -> list[Any]:
    """Everything in metrics.jsonl that does not tell the time."""
    return [r._replace(seconds=0) for r in RunDirectory(run).metrics.read()]


def finish(run: Path) -> dict[str, Any]:
    """Everything in finished.json but the hash of the lineage, which tells the time."""
    told: dict[str, Any] = json.loads((run / "finished.json").read_text())
    del told["lineage_sha256"]
    return told


def contents(workdir: Path) -> str:
    """Everything an experiment leaves that does not tell the time, to be compared."""
    runs = sorted(path.parent for path in workdir.glob("*/metrics.jsonl"))
    out = {
        run.name: {
            "files": sorted(p.name for p in run.iterdir()),
            "saved": sorted(p.name for p in (run / "checkpoints").iterdir()),
            "config": (run / "config.json").read_text(),
            "finished": finish(run),
            "records": records(run),
            "digests": digests(run),
        }
        for run in runs
    }
    return json.dumps(out)


def assert_identical(a: Any, b: Any) -> None:
    """Two trees of states or parameters, bit for bit."""
    a, b = to_arrays(a), to_arrays(b)
    assert {n: digest({n: x}) for n, x in a.items()} == {
        n: digest({n: x}) for n, x in b.items()
    }
