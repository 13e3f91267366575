"""What an experiment will cost, before it is launched: `--dry_run`."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from parity_jax.experiment import Experiment
from parity_jax.mesh import MEMBER
from parity_jax.platform import made_for
from parity_jax.population import Population, check_devices
from parity_jax.program import memory_limit, memory_needed
from parity_jax.runs.curves import check_tools
from parity_jax.runs.directory import ExperimentDirectory, RunDirectory
from parity_jax.runs.execute import Recorded, Rehearse, check_start, left_to_do
from parity_jax.runs.resolve import (
    Parts,
    ResolvedRun,
    check_planned,
    in_own_code,
    make_program,
    parts_of,
    resolve,
    select,
    under_run,
)
from parity_jax.runs.targets import chosen, compiled_for, devices_of
from parity_jax.runs.unread import check_numbers


def forecast(
    experiment: Experiment,
    only: list[str],
    say: Callable[[str], None],
    home: ExperimentDirectory | None = None,
    rehearse: Rehearse = lambda runs: None,
) -> None:
    """One line for each run: layout, bytes, programs, seconds; nothing is written.

    `rehearse` may refuse more of the runs that are left to do. ConfigError for what
    cannot be run, in `home` if it is given. Seconds are of one step and one evaluation
    from fresh parameters: after training responses may be longer, or shorter.
    """
    runs = resolve(experiment)
    check_tools(experiment.log)
    names = select([*runs], only)
    left = check_files(runs, names, home)
    programs, recorded = dict[str, Population](), dict[str, Recorded]()
    made: dict[str, Parts] = {}
    for name in names:
        run = runs[name]
        check_devices(run.population)
        with under_run(name), in_own_code(run):
            programs[name] = make_program(run, parts=parts_of(run, made))
            recorded[name] = Recorded.of(programs[name])
    check_numbers(runs, programs)
    rehearse({name: recorded[name] for name in left})
    total = sum(forecast_run(n, runs[n], programs[n], say) for n in names)
    say(f"in all {total / 60:.1f} min")


def check_files(
    runs: dict[str, ResolvedRun], names: list[str], home: ExperimentDirectory | None
) -> list[str]:
    """The runs that are left to do; ConfigError for what the files of parents, and of
    the directory, refuse.
    """
    if home is not None:
        return left_to_do(runs, home, names)
    for name in names:
        if runs[name].parent.sibling:
            check_planned(name, runs[name], runs[runs[name].parent.sibling])
        elif runs[name].parent.path:
            elsewhere = RunDirectory(Path(runs[name].parent.path))
            check_start(name, runs[name], elsewhere, {})
    return names


def forecast_run(
    name: str, run: ResolvedRun, program: Population, say: Callable[[str], None]
) -> float:
    """Say what the run will cost; its seconds."""
    schedule, num = run.schedule, len(program.labels)
    devices = [*program.layout.mesh.devices.flat]
    states, metrics = program.init(None), program.no_metrics()
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(states)) // num

    def compile_all() -> tuple[Any, Any]:
        step = program.run.compiled(states, metrics, 1, program.data)
        return step, program.evaluate.compiled(states, program.data)

    (step, evaluate), compile_seconds = timed(compile_all)
    needed = memory_needed(step)
    of_device = -(-num // program.layout.mesh.shape[MEMBER])  # members
    width = min(program.layout.width, of_device)
    (states, metrics), _ = timed(step, states, metrics, 1, program.data)
    (states, _), step_seconds = timed(step, states, metrics, 1, program.data)
    _, eval_seconds = timed(evaluate, states, program.data)
    num_evaluations = 1 + -(-schedule.num_steps // schedule.eval_every)
    seconds = schedule.num_steps * step_seconds + num_evaluations * eval_seconds
    say(
        f"{name}: {num} members on {program.layout}, {width} to a vmap; "
        f"{mib(state_bytes)} of state per member, {mib(needed)} of "
        f"{mib(memory_limit(devices))} on a device; 2 programs compiled in "
        f"{compile_seconds:.0f} s; "
        f"{step_seconds:.3g} s per step x {schedule.num_steps}, "
        f"{eval_seconds:.3g} s per evaluation x {num_evaluations}: "
        f"{seconds / 60:.1f} min"
    )
    return compile_seconds + seconds


def forecast_for(
    experiment: Experiment,
    only: list[str],
    name: str,
    say: Callable[[str], None],
    home: ExperimentDirectory | None = None,
    rehearse: Rehearse = lambda runs: None,
) -> None:
    """One line for each run, compiled for a target and not run; nothing is written.

    `rehearse` may refuse more of the runs that are left to do.
    """
    target, runs = chosen(name), resolve(experiment)
    check_tools(experiment.log)
    names = select([*runs], only)
    left = check_files(runs, names, home)
    devices = devices_of(name)
    programs, recorded = dict[str, Population](), dict[str, Recorded]()
    for run_name in names:
        run = runs[run_name]
        with under_run(run_name), in_own_code(run), made_for(target.platform):
            programs[run_name] = make_program(run, devices)
            recorded[run_name] = Recorded.of(programs[run_name])
    check_numbers(runs, programs)
    rehearse({run_name: recorded[run_name] for run_name in left})
    for run_name, program in programs.items():
        row, num = compiled_for(target, program), len(program.labels)
        used = program.layout.mesh.size
        needed, there = row["device_bytes"], row["memory_bytes"]
        is_whole = runs[run_name].mesh.size == 1  # a member on a device
        most = int(there // (needed / num)) if is_whole else num
        fits = "fits" if row["fits"] else "does not fit"
        say(
            f"{run_name}: {num} members on {used} of {len(devices)} devices of {name}: "
            f"{fits}, {mib(needed)} of {mib(there)} on a device "
            f"({mib(row['argument_bytes'])} of arguments, "
            f"{mib(row['temporary_bytes'])} of temporaries, "
            f"{mib(row['code_bytes'])} of code); about {most} members would fit; "
            f"a step takes no less than {row['roofline_seconds'] * 1e3:.3g} ms (its "
            f"products at the peak of {name}); "
            f"compiled in {row['compile_seconds']:.0f} s, not run"
        )


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
