"""Killing small runs at random moments: each stage, each layout, bit for bit.

A life is a process that executes or continues one experiment: the real loop, files and
checkpoints. Lives are forked from a server that has imported everything and started no
backend, and run programs that one process compiled for all of them; so a life begins to
train in well under a second of computing, and most kills hit what is to be tested.
"""

import dataclasses
import json
import multiprocessing
import os
import pickle
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
from flax.core import FrozenDict
from jax.experimental.serialize_executable import deserialize_and_load, serialize
from tiny import POLICY_GRADIENT, PRETRAIN, STAR, tiny_experiment

from parity_jax import runs
from parity_jax.checkpoint import Checkpoints, digest, from_arrays, to_arrays
from parity_jax.config import (
    Experiment,
    LinearConfig,
    LinearPretrainConfig,
    LinearStarConfig,
    PopulationConfig,
    RolloutConfig,
    RunConfig,
    SgdConfig,
    StageConfig,
)
from parity_jax.population import Population, member_labels
from parity_jax.results import read_records
from parity_jax.types import Hypers

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["kills"])
NUM_STEPS = 8

STAGES: dict[str, StageConfig] = {
    "pretrain": PRETRAIN,
    "policy_gradient": dataclasses.replace(
        POLICY_GRADIENT,
        rollout=RolloutConfig(4, 4, num_unique_prompts=6),
        num_iterations=2,
        num_minibatches=2,
        kl_estimator="k3",
    ),
    "star": dataclasses.replace(STAR, restart=True, decay=True),
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
        num_steps=NUM_STEPS,
        log_every=2,
        eval_every=4,
        checkpoint_every=5,
        checkpoint_steps=(3,),
        max_to_keep=2,
    )
    model = {"model": LinearConfig()} if stage.startswith("linear") else {}
    return tiny_experiment(
        axes=FrozenDict({"seed": (0, 1, 2)}),
        runs=FrozenDict({"run": run}),
        population=LAYOUTS[layout],
        **model,
    )


def prepare() -> None:
    """Settings of a process, before its backend starts."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    jax.config.update("jax_num_cpu_devices", 2)


def compile_programs(experiment: Experiment, path: Path) -> None:
    """Write the compiled programs and the first states of the run."""
    prepare()
    population = runs.build(experiment, "run")
    states = population.init(None)
    programs = {
        "run": serialize(population.run.lower(states, 1).compile()),
        "evaluate": serialize(population.evaluate.lower(states).compile()),
    }
    template = jax.eval_shape(population.init, None)
    path.write_bytes(pickle.dumps((to_arrays(states), template, programs)))


def live(experiment: Experiment, workdir: Path, path: Path) -> None:
    """One life: execute or continue the experiment, with the programs of a path."""
    prepare()
    arrays, template, programs = pickle.loads(path.read_bytes())
    load = partial(deserialize_and_load, execution_devices=jax.devices()[:1])
    population = Population(
        labels=member_labels(experiment.axes),
        init=lambda params: from_arrays(arrays, template),
        sequences_per_step=1,
        **{name: load(*program) for name, program in programs.items()},
    )
    runs.build = lambda experiment, name: population
    runs.run_experiment(experiment, workdir, quiet=True)


def contents(workdir: Path) -> str:
    """Everything a run leaves that does not tell the time: what must be identical."""
    out = {}
    for run in sorted(path.parent for path in workdir.glob("*/metrics.jsonl")):
        records = read_records(run / "metrics.jsonl")
        checkpoints = Checkpoints(run, read_only=True)
        out[run.name] = {
            "files": sorted(p.name for p in run.iterdir()),
            "saved": sorted(p.name for p in (run / "checkpoints").iterdir()),
            "config": (run / "config.json").read_text(),
            "finished": (run / "finished.json").read_text(),
            "records": [[r["split"], r["step"], r["values"]] for r in records],
            "digests": [digest(checkpoints.read(n)) for n in checkpoints.steps()],
        }
        checkpoints.close()
    return json.dumps(out)


@dataclasses.dataclass
class Tally:
    """What a campaign of kills did."""

    kills: int = 0  # lives that were killed before they were done
    kills_in_training: int = (
        0  # those killed after they had begun or continued to train
    )
    finished_runs: int = 0  # compared with the undisturbed run
    differing_runs: int = 0

    def add(self, other: "Tally") -> None:
        for field in dataclasses.fields(self):
            total = getattr(self, field.name) + getattr(other, field.name)
            setattr(self, field.name, total)


def start(target: Callable[..., None], *args: Any) -> Any:
    process = SERVER.Process(target=target, args=args)
    # The server itself has no other way to find the modules that it preloads.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        process.start()
    return process


def finish(target: Callable[..., None], *args: Any) -> float:
    """Seconds of an undisturbed process."""
    begun, process = time.monotonic(), start(target, *args)
    process.join()
    assert process.exitcode == 0, args
    return time.monotonic() - begun


def campaign(stage: str, layout: str, num_kills: int, place: Path, seed: int) -> Tally:
    """Kill lives of one experiment at random moments; finish and compare its runs.

    Moments are uniform over a life, and every other time over the part that trains.
    """
    place.mkdir(parents=True)
    setting = experiment(stage, layout)
    programs = place / "programs"
    finish(compile_programs, setting, programs)
    length = finish(live, setting, place / "whole", programs)
    expected, tally, chance = contents(place / "whole"), Tally(), random.Random(seed)
    while tally.kills < num_kills or tally.finished_runs == 0:
        workdir = place / f"killed_{tally.finished_runs}"
        metrics = workdir / "run" / "metrics.jsonl"
        before, process = changed(metrics), start(live, setting, workdir, programs)
        if tally.kills < num_kills:
            if tally.kills % 2:
                while changed(metrics) == before and process.is_alive():
                    time.sleep(0.002)
            process.join(chance.uniform(0, length / (1 + tally.kills % 2)))
            process.kill()
        process.join()
        if process.exitcode == 0:
            tally.finished_runs += 1
            tally.differing_runs += contents(workdir) != expected
        else:
            assert process.exitcode == -signal.SIGKILL, "a life failed by itself"
            tally.kills += 1
            tally.kills_in_training += changed(metrics) != before
    return tally


def changed(path: Path) -> int:
    """When a file was last changed; 0 if it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0
