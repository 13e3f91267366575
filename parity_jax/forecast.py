"""What an experiment will cost, before it is launched: `--dry_run`."""

import time
from collections.abc import Callable
from typing import Any

import jax

from parity_jax.config import Experiment
from parity_jax.population import layout
from parity_jax.runs import build, order_of_execution


def forecast(experiment: Experiment, say: Callable[[str], None]) -> None:
    """One line for each run: layout, bytes, programs, seconds; nothing is written.

    Seconds are of one step and one evaluation from fresh parameters: after training
    responses may be longer, or shorter.
    """
    total = sum(
        forecast_run(experiment, name, say) for name in order_of_execution(experiment)
    )
    say(f"in all {total / 60:.1f} min")


def forecast_run(
    experiment: Experiment, name: str, say: Callable[[str], None]
) -> float:
    """Say what the run will cost; its seconds."""
    run, population = experiment.runs[name], build(experiment, name)
    num = len(population.labels)
    devices, width = layout(experiment.population, num)
    states = population.init(None)
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(states)) // num

    def compile_all() -> tuple[Any, Any]:
        step = population.run.lower(states, 1).compile()
        return step, population.evaluate.lower(states).compile()

    (step, evaluate), compile_seconds = timed(compile_all)
    working_bytes = step.memory_analysis().temp_size_in_bytes
    (states, _), _ = timed(step, states, 1)
    (states, _), step_seconds = timed(step, states, 1)
    _, eval_seconds = timed(evaluate, states)
    num_evaluations = 1 + -(-run.num_steps // run.eval_every)
    seconds = run.num_steps * step_seconds + num_evaluations * eval_seconds
    say(
        f"{name}: {num} members on {len(devices)} devices, {width} to a vmap; "
        f"{mib(state_bytes)} of state per member, {mib(working_bytes)} to work in; "
        f"2 programs compiled in {compile_seconds:.0f} s; "
        f"{step_seconds:.3g} s per step x {run.num_steps}, "
        f"{eval_seconds:.3g} s per evaluation x {num_evaluations}: "
        f"{seconds / 60:.1f} min"
    )
    return compile_seconds + seconds


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What the work gives, and its seconds."""
    started = time.perf_counter()
    result = work(*arguments)
    leaves = [x for x in jax.tree.leaves(result) if isinstance(x, jax.Array)]
    jax.block_until_ready(leaves)
    return result, time.perf_counter() - started


def mib(num_bytes: int) -> str:
    """Bytes, readable."""
    return f"{num_bytes / 2**20:.1f} MiB"
