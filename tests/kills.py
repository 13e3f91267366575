"""Killing small runs at random moments: each stage, each layout, bit for bit.

A life is a process that executes or continues one run: the real loop, files and
checkpoints. Lives are forked from a server that has imported everything and started no
backend. Those of a real stage take programs that one process compiled for all of them,
and so train after a third of a second, where tracing would take three; those of the
random walk, which is traced at once, do all that a user's do.
"""

import dataclasses
import multiprocessing
import os
import pickle
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
from flax.core import FrozenDict
from jax.experimental.serialize_executable import deserialize_and_load, serialize
from small_runs import WalkConfig, contents
from tiny import PRETRAIN, tiny_experiment

from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import LinearConfig, ModelConfig
from parity_jax.population import Population, PopulationConfig, layout
from parity_jax.program import uncached
from parity_jax.runs import RunDirectory, make_program, resolve, run_experiment
from parity_jax.runs.checkpoint import from_arrays, to_arrays
from parity_jax.runs.execute import Job, Recorded, execute
from parity_jax.runs.interrupt import never
from parity_jax.stages import (
    LinearPretrainConfig,
    LinearStarConfig,
    PolicyGradientConfig,
    PretrainConfig,
    RolloutConfig,
    SgdConfig,
    StageConfig,
    StarConfig,
)

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["kills"])

STAGES: dict[str, StageConfig] = {
    "walk": WalkConfig(),
    "pretrain": PRETRAIN,
    "policy_gradient": PolicyGradientConfig(
        rollout=RolloutConfig(4, 4, num_unique_prompts=6),
        num_iterations=2,
        kl_estimator="k3",
    ),
    "star": StarConfig(
        RolloutConfig(64, 1), batch_size=8, num_epochs=2, restart=True, decay=True
    ),
    "linear_pretrain": LinearPretrainConfig(SgdConfig(4), num_updates=4),
    "linear_star": LinearStarConfig(RolloutConfig(64, 1), SgdConfig(4), num_updates=8),
}
LINEAR = LinearConfig()
LAYOUTS = {
    "one by one": PopulationConfig(num_devices=1, vmap_width=1),
    "all at once": PopulationConfig(num_devices=1, vmap_width=3),
}


def experiment(
    stage: StageConfig, layout: str, model: ModelConfig = LINEAR
) -> Experiment:
    """Three seeds in one stage; checkpoints at 0, 3, 5 and 8, the last 2 kept."""
    numbers = {"learning_rate": 1e-3}
    if isinstance(stage, PretrainConfig | LinearPretrainConfig):
        numbers["p_cot"] = 0.5
    if isinstance(stage, PolicyGradientConfig):
        numbers["beta"] = 0.1
    run = RunConfig(
        stage=stage,
        hypers=Hypers(**numbers),
        num_steps=8,
        log_every=2,
        eval_every=4,
        checkpoint_every=5,
        checkpoint_steps=(3,),
        max_to_keep=2,
    )
    return tiny_experiment(
        model=model,
        axes=FrozenDict({"seed": (0, 1, 2)}),
        runs=FrozenDict({"run": run}),
        evaluate=EvaluateConfig(4, (1.0,)),
        population=LAYOUTS[layout],
    )


def prepare() -> None:
    """Settings of a process, before its backend starts."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    jax.config.update("jax_num_cpu_devices", 2)


def compile_programs(experiment: Experiment, path: Path) -> None:
    """Write the programs of the run, its first states and its metrics of no step."""
    prepare()
    program = make_program(resolve(experiment)["run"])
    states, metrics = program.init(None), program.no_metrics()
    with uncached():  # one that came from a cache cannot be written again
        programs = {
            "run": serialize(program.run.compiled(states, metrics, 1, program.data)),
            "evaluate": serialize(program.evaluate.compiled(states, program.data)),
        }
    template = jax.eval_shape(program.init, None)
    start = (to_arrays(states), template, jax.device_get(metrics), program.data)
    path.write_bytes(pickle.dumps((*start, programs)))


def live(experiment: Experiment, workdir: Path, path: Path) -> None:
    """One life: execute or continue the run with the programs of a path."""
    prepare()
    arrays, template, metrics, data, programs = pickle.loads(path.read_bytes())
    devices = jax.devices()[:1]
    run, directory = resolve(experiment)["run"], RunDirectory(workdir / "run")
    loaded = {
        name: deserialize_and_load(*program, execution_devices=devices)
        for name, program in programs.items()
    }
    on_one = jax.sharding.SingleDeviceSharding(devices[0])
    program = Population(
        labels=run.labels,
        layout=layout(run.population, len(run.labels), lambda: 0),
        data=data,
        init=lambda params, parent_keys=None: from_arrays(arrays, template),
        metric_shapes=lambda: metrics,
        numbers_read=set,
        placed=lambda tree: jax.tree.map(lambda _: on_one, tree),
        **loaded,
    )
    with directory.locked():
        job = Job("run", run, directory, program, Recorded([], []))
        execute(job, (), True, never)


def live_whole(experiment: Experiment, workdir: Path, cache: Path) -> None:
    """One life of a user's experiment, with a cache of compiled programs."""
    prepare()
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    run_experiment(experiment, workdir, quiet=True)


def start(target: Callable[..., None], *args: Any) -> Any:
    """A process of the server."""
    process = SERVER.Process(target=target, args=args)
    # The server itself has no other way to find the modules that it preloads.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        process.start()
    return process


def is_walk(setting: Experiment) -> bool:
    return isinstance(setting.runs["run"].stage, WalkConfig)


def changed(path: Path) -> int:
    """When a file was last changed; 0 if it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


def finish(target: Callable[..., None], *args: Any) -> None:
    """A process of the server, until its end."""
    process = start(target, *args)
    process.join()
    assert process.exitcode == 0, (target, args)


class Life:
    """A process in a directory, and whether it trains."""

    def __init__(self, setting: Experiment, workdir: Path, shared: Path):
        self.metrics = workdir / "run" / "metrics.jsonl"
        self.before, self.begun = changed(self.metrics), time.monotonic()
        target = live_whole if is_walk(setting) else live
        self.process = start(target, setting, workdir, shared)

    def has_trained(self) -> bool:
        """Whether it began a run or continued one."""
        return changed(self.metrics) != self.before

    def until_it_trains(self) -> float:
        """Seconds of everything before."""
        while not self.has_trained() and self.process.is_alive():
            time.sleep(0.002)
        return time.monotonic() - self.begun

    def end(self) -> float:
        """Seconds of it all."""
        self.process.join()
        return time.monotonic() - self.begun


@dataclasses.dataclass
class Tally:
    """What a campaign of kills did."""

    kills: int = 0  # lives that were killed before they were done
    kills_in_training: int = 0  # those that had begun or continued to train
    finished_runs: int = 0  # compared with the undisturbed run
    differing_runs: int = 0


def campaign(setting: Experiment, num_kills: int, place: Path, seed: int = 0) -> Tally:
    """Kill lives of one experiment at random moments; finish and compare its runs.

    Moments are uniform over a whole life, and two times in three over its training.
    """
    place.mkdir(parents=True)
    shared = place / "programs"
    if is_walk(setting):
        Life(setting, place / "first", shared).end()  # its programs are cached
    else:
        finish(compile_programs, setting, shared)
    whole = Life(setting, place / "whole", shared)
    begun, length = whole.until_it_trains(), whole.end()
    share = 1 - begun / length  # of a life that it trains
    expected = contents(place / "whole")
    tally, chance = Tally(), random.Random(seed)
    while tally.kills < num_kills or tally.finished_runs == 0:
        workdir = place / f"killed_{tally.finished_runs}"
        life = Life(setting, workdir, shared)
        if tally.kills < num_kills:
            span = length
            if tally.kills % 3:
                life.until_it_trains()
                span *= share
            life.process.join(chance.uniform(0, span))
            life.process.kill()
        seconds = life.end()
        if life.process.exitcode == 0:
            length = seconds  # as fast as the machine is now
            tally.finished_runs += 1
            tally.differing_runs += contents(workdir) != expected
        else:
            assert life.process.exitcode == -signal.SIGKILL, "a life failed by itself"
            tally.kills += 1
            tally.kills_in_training += life.has_trained()
    return tally
