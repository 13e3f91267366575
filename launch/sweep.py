"""Sweep experiments: jobs are planned, checked and handed to an engine.

python -m launch.sweep --config=FILE.py[,FILE.py..] --workdir=SWEEP
    [--grid=NAME=VALUE,.. ..] [--split=AXIS:NUMBER ..] [--chains]
    [--config.a.b=VALUE ..] [--engine=local|slurm|none] [--profile=NAME]
    [--slurm=OPTION=VALUE,..] [--grace=SECONDS] [--max_requeues=N] [--parallel=N]
    [--report=DIR] [--dry_run] [--quiet] [--debug]

A swept name that can be an axis of a population (p_cot, seed, learning_rate ..) is one
in every program; --split gives a job so many of its values. Any other name is a field
of the config (task.num_bits), or scale, and every combination is a job. --chains makes
a job of every chain of runs that needs no other. The same command continues: what is
finished or queued is left alone, and a larger grid adds jobs. --dry_run shows the jobs
and writes nothing.

local runs one job after the other; slurm submits all and returns (--slurm has options
of sbatch by their long names, time among them); none only plans, for engines that start
`python -m launch.job SWEEP INDEX`. A profile is a table of launch/profiles.toml, or of
--profiles=FILE, with these settings. --report makes a report when all jobs have ended.
Exit code 0: done, or submitted, 1: a job failed, 2: refused (one line, nothing was
submitted), 75: stopped, the same command continues.
"""

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from absl import flags, logging
from rich.console import Console
from rich.markup import escape

from launch import engines, local
from launch.plan import Asked, Built, of_job, parse_grid, parse_split, plan
from launch.queue import check_options, places
from launch.rows import row, rows, totals
from launch.table import counted, print_table
from parity_jax.analysis.rehearsal import rehearse
from parity_jax.cli import NO_HELP, report
from parity_jax.cli.devices import check_settings_of_jax
from parity_jax.cli.door import through_the_door
from parity_jax.cli.run import (
    analyse,
    check_same_settings,
    check_working_directory,
    load_experiment,
    read_flags,
)
from parity_jax.config import ConfigError, StoppedError, early, require
from parity_jax.population import Population
from parity_jax.runs import execute
from parity_jax.runs.curves import check_tools
from parity_jax.runs.directory import ExperimentDirectory, local_path
from parity_jax.runs.forecast import mib
from parity_jax.runs.interrupt import stop_requests
from parity_jax.runs.lineage import git_commit
from parity_jax.runs.lineage import settings as settings_of_jax
from parity_jax.runs.sweep import Sweep, SweepDirectory
from parity_jax.runs.unread import check_numbers

SILENCE = 10.0  # seconds between lines
PROFILES = Path(__file__).parent / "profiles.toml"


def define_flags() -> flags.FlagValues:
    """The flags beside the overrides; nothing global is defined."""
    own = flags.FlagValues()
    options: dict[str, Any] = {"flag_values": own}
    flags.DEFINE_list("config", [], "Experiments, FILE or FILE:SCALE.", **options)
    flags.DEFINE_string("workdir", None, "Directory of the sweep.", **options)
    flags.DEFINE_multi_string("grid", [], "NAME=VALUE,VALUE,..", **options)
    flags.DEFINE_multi_string("split", [], "AXIS:NUMBER of values to a job.", **options)
    flags.DEFINE_bool("chains", False, "A job for each chain of runs.", **options)
    flags.DEFINE_string("engine", None, "local, slurm or none.", **options)
    flags.DEFINE_string("profile", None, "Settings of a cluster.", **options)
    flags.DEFINE_string("profiles", str(PROFILES), "File of profiles.", **options)
    flags.DEFINE_multi_string("slurm", [], "Options of sbatch.", **options)
    flags.DEFINE_integer("grace", None, "Seconds to save before the limit.", **options)
    flags.DEFINE_integer("max_requeues", None, "Times to start again.", **options)
    flags.DEFINE_integer("parallel", None, "Jobs at the same time.", **options)
    flags.DEFINE_string("report", None, "Directory of a report at the end.", **options)
    flags.DEFINE_bool("dry_run", False, "Only show the jobs.", **options)
    flags.DEFINE_bool("quiet", False, "Say nothing but warnings.", **options)
    flags.DEFINE_bool("debug", False, "Show tracebacks.", **options)
    flags.DEFINE_bool("help", False, "Show this help.", **options)
    own.set_gnu_getopt(True)
    return own


def main(argv: Sequence[str]) -> None:
    """Plan, check and launch what the arguments say."""
    own = define_flags()
    overrides = read_flags(own, "sweep", argv)
    if own.help:
        print(__doc__ or NO_HELP)
        return
    logging.set_verbosity(logging.ERROR)
    for name in ("config", "workdir"):
        require(bool(own[name].value), f"--{name}", own[name].value, "is required")
    grid = parse_grid(own.grid)
    split = parse_split(own.split, grid)
    asked = Asked(tuple(own.config), tuple(overrides), grid, split, own.chains)
    settings = engines.settings_of(
        {} if own.profile is None else engines.read_profile(own.profile, own.profiles),
        given(own),
    )
    check_given(own, settings)
    home = SweepDirectory(local_path("workdir", own.workdir))
    is_free = not (home.path / "config.json").exists()
    allowed = "is the directory of an experiment or a run"
    require(is_free, "--workdir", own.workdir, allowed)
    if settings.report:
        report.check_place(local_path("--report", settings.report), [home.path])
    with ExitStack() as held:
        with stop_requests() as stops, stops.at_once():
            begun_in, as_they_were = Path.cwd(), settings_of_jax()
            modules = load(asked.configs)
            sweep, experiments = plan(asked, modules, before(home), git_commit())
            check_working_directory(",".join(asked.configs), begun_in)
            check_same_settings(",".join(asked.configs), as_they_were)
            check_report(settings, modules)
            set_up_jax_to_plan(experiments)
            try:
                sizes = checked(home, experiments, own.quiet)
            except StoppedError:
                raise StoppedError("stopped before anything was launched") from None
            if own.dry_run:
                show(home, sweep, sizes)
                return
            held.enter_context(local.held(home))
            wanted, told = submitted(home, asked, modules, settings, sweep.commit)
        if settings.engine == "local":
            engines.run_here(home, wanted, settings, own.quiet)
    if not own.quiet:
        found = rows(home, places(home.path))
        print(f"{told}{home.path}: {counted(len(found), 'job')}: {totals(found)}")


def submitted(
    home: SweepDirectory,
    asked: Asked,
    modules: Mapping[str, ModuleType],
    settings: engines.Settings,
    commit: str | None,
) -> tuple[list[int], str]:
    """Write the sweep and give its jobs to the engine; those, and what was done."""
    with home.locked():
        there = before(home)  # others may have planned meanwhile
        sweep, _ = plan(asked, modules, there, commit)
        if there:
            engines.check_busy(home, there, sweep)
        if there and there.commit != sweep.commit:
            text = f"planned at commit {there.commit}, continued at {sweep.commit}"
            print(f"warning: {home.path}: {text}", file=sys.stderr)
        home.write(sweep)
        wanted = engines.to_do(home, settings)
        try:
            told = engines.submit(home, wanted, settings)
        except ConfigError:  # it was refused: as if it had not been asked
            home.restore(there)
            raise
        engines.write_settings(home, settings)
        return wanted, told


def check_report(settings: engines.Settings, modules: Mapping[str, ModuleType]) -> None:
    """ConfigError for a report of experiments of which none has claims."""
    has_any = any(hasattr(module, "claims") for module in modules.values())
    allowed = f"has nothing to tell: no claims in {', '.join(modules)}"
    require(has_any or not settings.report, "--report", settings.report, allowed)


def given(own: flags.FlagValues) -> dict[str, Any]:
    """The settings among the flags that were given."""
    names = ("engine", "grace", "max_requeues", "parallel", "report")
    found = {name: own[name].value for name in names if own[name].value is not None}
    options: dict[str, str] = {}
    for text in own.slurm:
        for part in re.split(r",(?=[A-Za-z][\w-]*=)", text):  # a value may hold commas
            name, equals, value = part.partition("=")
            allowed = "must be OPTION=VALUE,.. of sbatch, e.g. partition=gpu,time=240"
            is_right = bool(name) and bool(equals) == bool(value)  # or an option alone
            require(is_right, "--slurm", text, allowed)
            options[name] = value
    return found | ({"slurm": options} if options else {})


def check_given(own: flags.FlagValues, settings: engines.Settings) -> None:
    """ConfigError for flags that the engine has no use for, or cannot follow."""
    if settings.engine == "slurm":
        check_options(settings.slurm)
    else:
        for name in ("slurm", "grace", "max_requeues", "parallel"):
            allowed = f"is for --engine=slurm, not {settings.engine}"
            require(not own[name].present, f"--{name}", own[name].value, allowed)
    no_end = settings.engine == "none" and bool(settings.report)
    allowed = "needs an engine that knows when all jobs have ended, not none"
    require(not no_end, "--report", settings.report, allowed)
    silent = own.quiet and own.dry_run
    require(not silent, "--quiet", True, "--dry_run is there to show the jobs")
    is_read = own.profile is not None or not own["profiles"].present
    require(is_read, "--profiles", own.profiles, "has no effect without --profile")


def before(home: SweepDirectory) -> Sweep | None:
    """What the directory holds already."""
    return home.read() if home.has_sweep() else None


def load(configs: Sequence[str]) -> dict[str, ModuleType]:
    """The modules of experiment files by their paths, each loaded once."""
    files = dict.fromkeys(config.partition(":")[0] for config in configs)
    with early():
        return {file: load_experiment(file) for file in files}


def set_up_jax_to_plan(experiments: Sequence[Built]) -> None:
    """Trace on CPU devices, of which there are as many as any run asks for.

    The accelerator is the jobs': a process that only plans holds no memory of it, and a
    host that submits may have none.
    """
    runs = [run for each in experiments for run in each.runs.values()]
    check_settings_of_jax()  # the jobs will have them too
    most = max(max(run.mesh.size, run.population.num_devices) for run in runs)
    with suppress(RuntimeError):  # this process uses JAX already
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", most)


def checked(
    home: SweepDirectory, experiments: Sequence[Built], quiet: bool
) -> dict[str, int]:
    """`check`, which says what it is at: on a terminal, elsewhere if it takes long."""
    console, said = Console(stderr=True, quiet=quiet, emoji=False), [time.monotonic()]

    def say(text: str) -> None:
        if time.monotonic() - said[0] >= SILENCE:
            said[0] = time.monotonic()
            console.print(text)

    if not console.is_terminal:
        return check(home, experiments, say)
    with console.status("") as status:
        return check(home, experiments, status.update)


def check(
    home: SweepDirectory, experiments: Sequence[Built], say: Callable[[str], None]
) -> dict[str, int]:
    """Bytes of a member's state by directory; ConfigError for what cannot be run.

    Every experiment is compared with what is in its directory. Runs that are left to do
    are traced once for each shape bucket, and their analysis is rehearsed, which a job
    would do too late.
    """
    sizes = {each.bucket: 0 for each in experiments}
    traced: dict[Any, dict[str, Population]] = {bucket: {} for bucket in sizes}
    for each in experiments:
        directory, programs = home.experiment(each.job), traced[each.bucket]
        with of_job(each.job.directory), early():
            check_tools(each.experiment.log)
            tell_undrawn(each, directory)
            left = execute.left_to_do(each.runs, directory, [*each.runs])
            if programs.keys() >= {*left}:
                check_numbers(each.runs, {name: programs[name] for name in left})
                continue
            say(f"checking {escape(each.job.directory)}")
            jobs = execute.plan(each.runs, directory, left)
            recorded = {job.name: job.recorded for job in jobs}
            shown = partial(analyse, each.module)
            rehearse(each.experiment, directory.path, recorded, shown)
            programs |= {job.name: job.program for job in jobs}
            sizes[each.bucket] = max(sizes[each.bucket], *map(state_bytes, jobs))
    return {each.job.directory: sizes[each.bucket] for each in experiments}


def tell_undrawn(each: Built, home: ExperimentDirectory) -> None:
    """Says which curves are asked for too late for a sweep: it starts no job again."""
    log = each.experiment.log
    if any(
        execute.undrawn(run, home.run(name), log) for name, run in each.runs.items()
    ):
        told = f"{home.path} has runs that ended without curves of {', '.join(log)}"
        print(f"warning: {told}; `parity-jax run` of it draws them", file=sys.stderr)


def state_bytes(job: execute.Job) -> int:
    """Bytes of the state of one member."""
    leaves = jax.tree.leaves(jax.eval_shape(job.program.init, None))
    return sum(prod(x.shape) * x.dtype.itemsize for x in leaves) // len(job.run.labels)


def show(home: SweepDirectory, sweep: Sweep, sizes: Mapping[str, int]) -> None:
    """The jobs as a table; nothing is written."""
    queue, found, lines = places(home.path), [], []
    for n, job in enumerate(sweep.jobs):
        found.append(row(home, job, queue.get(n)))
        size, steps = sizes[job.directory] * job.members, sum(job.steps.values())
        runs = ", ".join(job.steps)
        numbers = [f"{job.members}", f"{steps}", mib(size) if size else "-"]
        lines.append([f"{n}", job.name, *numbers, found[-1].state, runs])
    head = ("", "job", "members", "steps", "state of members", "now", "runs")
    print_table(head, lines)
    members = sum(job.members for job in sweep.jobs)
    planned = f"{counted(len(sweep.jobs), 'job')}, {counted(members, 'member')}"
    print(f"{planned}: {totals(found)}")


if __name__ == "__main__":
    debug = "--debug" in sys.argv
    sys.exit(through_the_door(lambda: main(sys.argv[1:]), debug))
