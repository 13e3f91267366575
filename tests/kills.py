"""Killing small runs at random moments: each stage, each layout, bit for bit.

A life is a process that executes or continues one experiment, as a user's would. Lives
are forked from a server that has imported everything and started no backend, and find
their programs in a compilation cache that one of them filled; so a life soon trains,
and most kills hit what is to be tested.
"""

import dataclasses
import multiprocessing
import os
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
from small_runs import contents
from tiny import PRETRAIN, tiny_experiment

from parity_jax.evaluate import EvaluateConfig
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import LinearConfig
from parity_jax.population import PopulationConfig
from parity_jax.runs import run_experiment
from parity_jax.stages import (
    LinearPretrainConfig,
    LinearStarConfig,
    PolicyGradientConfig,
    RolloutConfig,
    SgdConfig,
    StageConfig,
    StarConfig,
)

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["kills"])

STAGES: dict[str, StageConfig] = {
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
LAYOUTS = {
    "one by one": PopulationConfig(num_devices=1, vmap_width=1),
    "all at once": PopulationConfig(num_devices=1, vmap_width=3),
}


def experiment(stage: str, layout: str) -> Experiment:
    """Three seeds in one stage; checkpoints at 0, 3, 5 and 8, the last 2 kept."""
    run = RunConfig(
        stage=STAGES[stage],
        hypers=Hypers(p_cot=0.5, beta=0.1, learning_rate=1e-3),
        num_steps=8,
        log_every=2,
        eval_every=4,
        checkpoint_every=5,
        checkpoint_steps=(3,),
        max_to_keep=2,
    )
    return tiny_experiment(
        model=LinearConfig(),  # the model that is traced fastest
        axes=FrozenDict({"seed": (0, 1, 2)}),
        runs=FrozenDict({"run": run}),
        evaluate=EvaluateConfig(4, (1.0,)),
        population=LAYOUTS[layout],
    )


def prepare(cache: Path) -> None:
    """Settings of a process, before its backend starts."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def live(experiment: Experiment, workdir: Path, cache: Path) -> None:
    """One life: execute or continue the experiment."""
    prepare(cache)
    run_experiment(experiment, workdir, quiet=True)


def start(target: Callable[..., None], *args: Any) -> Any:
    """A process of the server."""
    process = SERVER.Process(target=target, args=args)
    # The server itself has no other way to find the modules that it preloads.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        process.start()
    return process


def changed(path: Path) -> int:
    """When a file was last changed; 0 if it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


class Life:
    """A process in a directory, and when it began to train."""

    def __init__(self, *args: Any):
        self.metrics = args[1] / "run" / "metrics.jsonl"
        self.before, self.begun = changed(self.metrics), time.monotonic()
        self.process = start(live, *args)

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


def campaign(stage: str, layout: str, num_kills: int, place: Path, seed: int) -> Tally:
    """Kill lives of one experiment at random moments; finish and compare its runs.

    Moments are uniform over a whole life, and two times in three over its training.
    """
    place.mkdir(parents=True)
    setting, cache = experiment(stage, layout), place / "programs"
    Life(setting, place / "first", cache).end()  # it compiles the programs
    whole = Life(setting, place / "whole", cache)
    start, length = whole.until_it_trains(), whole.end()
    expected = contents(place / "whole")
    assert contents(place / "first") == expected
    tally, chance = Tally(), random.Random(seed)
    while tally.kills < num_kills or tally.finished_runs == 0:
        workdir = place / f"killed_{tally.finished_runs}"
        life = Life(setting, workdir, cache)
        if tally.kills < num_kills:
            span = length
            if tally.kills % 3:
                life.until_it_trains()
                span = length - start
            life.process.join(chance.uniform(0, span))
            life.process.kill()
        life.end()
        if life.process.exitcode == 0:
            tally.finished_runs += 1
            tally.differing_runs += contents(workdir) != expected
        else:
            assert life.process.exitcode == -signal.SIGKILL, "a life failed by itself"
            tally.kills += 1
            tally.kills_in_training += life.has_trained()
    return tally
