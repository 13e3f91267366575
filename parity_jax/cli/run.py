"""Run an experiment: all of its stages, then its claims and its figure.

parity-jax run --config=experiments/headline.py --workdir=runs/headline
    [--config.scale=paper] [--config.runs.grpo.num_steps=40 ..] [--only=RUN,..]
    [--dry_run [--target=h100x1|h100x8|v5e-4|v5e-16|v5p-8]] [--profile=DIR]
    [--quiet] [--debug] [--flagfile=FILE]
    [--coordinator=HOST:PORT --num_processes=N --process_id=I]

--config.scale=S is the argument of the experiment's get_config; --config=FILE:S says
the same. Any other --config.a.b=VALUE overrides a field; both --flag=VALUE and --flag
VALUE are read, and of a flag that is given twice the last one counts. Running the same
command again continues an interrupted run; with more steps it continues a finished one.
--only runs some of the stages. --dry_run only tells what will be run and what it will
cost; with --target its programs are compiled for devices that are not here. --profile
leaves a trace (for XProf or Perfetto) of all that is run, so take few steps. With
--coordinator, the address of process 0, N processes train one model that is spread over
all their devices; in a Slurm step with several tasks they are found by themselves.
"""

import importlib.util
import inspect
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, TypeVar

import jax
from absl import flags, logging
from ml_collections import ConfigDict

from parity_jax.analysis.claims import (
    plain_answer,
    plain_claims,
    read_claims,
    told,
)
from parity_jax.analysis.plots import pictures_of, style
from parity_jax.analysis.rehearsal import rehearse
from parity_jax.analysis.results import Results
from parity_jax.cli import IS_EMPTY, NO_HELP
from parity_jax.cli.devices import set_up_jax
from parity_jax.config import (
    ConfigError,
    UserCodeError,
    early,
    expanded,
    in_code_of,
    require,
    to_dict,
)
from parity_jax.config.overrides import SCALE, Override, apply, parse
from parity_jax.experiment import Experiment
from parity_jax.hosts import is_first, join, require_same
from parity_jax.models.huggingface import FolderError
from parity_jax.runs import ExperimentDirectory, completed, resolve, run_experiment
from parity_jax.runs.directory import local_path
from parity_jax.runs.execute import Recorded, Rehearse
from parity_jax.runs.files import write_bytes, write_json, write_text
from parity_jax.runs.forecast import forecast, forecast_for
from parity_jax.runs.interrupt import stop_requests
from parity_jax.runs.lineage import settings
from parity_jax.runs.resolve import select
from parity_jax.runs.targets import chosen, compile_only


def define_flags() -> flags.FlagValues:
    """The flags beside the overrides; nothing global is defined."""
    own = flags.FlagValues()
    options: dict[str, Any] = {"flag_values": own}
    flags.DEFINE_string("config", None, "Experiment, FILE or FILE:SCALE.", **options)
    flags.DEFINE_string("workdir", None, "Directory of the runs.", **options)
    flags.DEFINE_list("only", [], "Runs to execute; default: all.", **options)
    flags.DEFINE_bool("dry_run", False, "Only tell what it will cost.", **options)
    flags.DEFINE_string("target", "", "Devices to compile for.", **options)
    flags.DEFINE_string("profile", None, "Directory of a trace.", **options)
    flags.DEFINE_string("coordinator", "", "HOST:PORT of the first process.", **options)
    flags.DEFINE_integer("num_processes", 0, "That train together.", **options)
    flags.DEFINE_integer("process_id", -1, "Which of them this is.", **options)
    flags.DEFINE_bool("quiet", False, "Say nothing but warnings.", **options)
    flags.DEFINE_bool("debug", False, "Show tracebacks.", **options)
    flags.DEFINE_bool("help", False, "Show this help.", **options)
    own.set_gnu_getopt(True)
    return own


def parse_flags(argv: Sequence[str]) -> tuple[flags.FlagValues, list[Override]]:
    """Flags and overrides; ConfigError for whatever is neither."""
    own = define_flags()
    return own, read_flags(own, "run", argv)


def read_flags(
    own: flags.FlagValues, command: str, argv: Sequence[str]
) -> list[Override]:
    """Set the flags; the overrides beside them, ConfigError for what is neither."""
    try:
        _, *rest = own([command, *argv], known_only=True)
    except flags.Error as error:
        raise bad_flag(argv, error) from None
    except (OSError, UnicodeDecodeError) as error:
        typed = " ".join(arg for arg in argv if "flagfile" in arg)
        raise ConfigError("flag", typed, f"cannot be read: {error}") from None
    for name in own:  # as of a shell's variable that is not set
        is_empty = own[name].present and own[name].value in ("", [])
        require(not is_empty, f"--{name}", "", IS_EMPTY)
    return parse(rest)


def bad_flag(argv: Sequence[str], error: flags.Error) -> ConfigError:
    """What absl says of a flag, in one line."""
    told = str(error).splitlines()[0].removeprefix("ERROR:: ")
    told = re.sub(r"\('(.*)', .*\)$", r"\1", told)  # the arguments of another error
    typed = [x for x in argv if x.strip("-").partition("=")[0] in told]
    return ConfigError("flag", " ".join(typed or argv), told)


def load_experiment(path: str) -> ModuleType:
    """The module of an experiment file; its folder joins the search for imports."""
    file = expanded("config", path)
    name = file.stem
    found = file.is_file() and file.suffix == ".py"
    require(
        found, "config", path, "must be an experiment file, FILE.py or FILE.py:SCALE"
    )
    there = getattr(sys.modules.get(name), "__file__", None)
    is_free = name not in sys.modules or there == str(file)  # else it is read anew
    allowed = f"must have another name: {name} is a module that is imported already"
    require(is_free, "config", path, allowed)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError("config", path, "must be an experiment file")
    for folder in (str(Path.cwd()), str(file.resolve().parent)):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that `name:Class` finds what the file defines
    with in_code_of(path):
        spec.loader.exec_module(module)
    allowed = "must define get_config() -> Experiment"
    require(callable(getattr(module, "get_config", None)), "config", path, allowed)
    return module


def read_experiment(module: ModuleType, path: str, scale: str | None) -> Experiment:
    """What get_config gives at a scale; the default one if it is None."""
    try:
        takes_scale = bool(inspect.signature(module.get_config).parameters)
    except ValueError:  # of a class of Python's own, say
        allowed = "must define get_config as a function"
        raise ConfigError("config", path, allowed) from None
    allowed = "this experiment has only one scale"
    require(scale is None or takes_scale, SCALE, scale, allowed)
    with in_code_of(path):
        try:
            experiment = module.get_config(*([] if scale is None else [scale]))
        except FolderError as error:  # of weights that the file names
            raise ConfigError("config", path, str(error)) from None
    allowed = "get_config must return an Experiment"
    is_right = isinstance(experiment, Experiment)
    require(is_right, "config", type(experiment).__name__, allowed)
    return experiment


def configured(
    config: str, overrides: Sequence[Override]
) -> tuple[ModuleType, Experiment]:
    """The experiment's module, and its config with the overrides."""
    with early():
        module = load_experiment(config.partition(":")[0])
    return module, built(module, config, overrides)


def built(module: ModuleType, config: str, overrides: Sequence[Override]) -> Experiment:
    """The config that an experiment's module gives, with the overrides."""
    file, _, scale = config.partition(":")
    scales = [o.value for o in overrides if o.path == SCALE]
    for given in scales:
        require(given is not None, SCALE, given, "needs a value")
        require(not scale, SCALE, given, f"has no effect beside --config={config}")
    with early():
        experiment = read_experiment(module, file, [scale or None, *scales][-1])
    return apply(experiment, [o for o in overrides if o.path != SCALE])


Made = TypeVar("Made")


def analyse(module: ModuleType, workdir: Path) -> None:
    """The experiment's claims, answer and figure of finished runs, if it has them."""
    home, results = ExperimentDirectory(workdir), Results(workdir)

    def made_by(name: str, read: Callable[[Any], Made]) -> Made | None:
        if not hasattr(module, name):
            return None
        begun_in, before, file = Path.cwd(), settings(), str(module.__file__)
        where = f"{file}: {name}"
        try:
            with in_code_of(where):
                found = read(getattr(module, name)(results))
        except ConfigError as error:  # of a run or score that it asked for
            raise UserCodeError(where, error) from error
        check_working_directory(file, begun_in)
        check_same_settings(file, before)
        return found

    with style():  # all are made before any is written: they tell of the same
        claims = made_by("claims", plain_claims)
        answer = made_by("answer", plain_answer)
        pictures = made_by("figure", pictures_of)
    home.forget_analysis()  # what a file does not make any more is not kept
    if claims is not None:
        write_json(home.claims, claims)
    if answer is not None:
        write_json(home.answer, answer)
    if pictures is not None:
        png, svg = pictures
        write_bytes(home.figure, png)
        write_bytes(home.drawing, svg)


def finish(
    experiment: Experiment, module: ModuleType, home: ExperimentDirectory, command: str
) -> None:
    """Analyse runs that have ended, unless somebody works on one of them again."""
    with home.settled() as is_settled:
        if is_settled and all(completed(resolve(experiment), home).values()):
            tell_diverged(home)
            analyse(module, home.path)
            write_text(home.command, f"{command}\n")
        elif is_first():
            told = "another command works on its runs, and will make claims and figure"
            print(f"warning: {home.path}: {told}", file=sys.stderr)


def tell_diverged(home: ExperimentDirectory) -> None:
    """Says of which runs some members have no numbers."""
    for run in home.runs() if is_first() else ():
        finished = run.read_finished()
        if finished and finished.num_diverged:
            told = f"{finished.num_diverged} of {len(finished.status)} members diverged"
            told += ": claims and figure lack their numbers"
            print(f"warning: {run.path}: {told}", file=sys.stderr)


def main(argv: Sequence[str]) -> None:
    """Run what the arguments say."""
    own, overrides = parse_flags(argv)
    if own.help:
        print(__doc__ or NO_HELP)
        return
    begun_in = Path.cwd()
    with stop_requests() as stops:
        logging.set_verbosity(logging.ERROR if own.quiet else logging.WARNING)
        check_flags(own)
        with stops.at_once():
            join(own.coordinator, own.num_processes, own.process_id)
            set_up_jax()
            typed = [own.workdir, own.config, *(each.text for each in overrides)]
            require_same("command", " ".join(map(str, typed)))
            before = settings()
            module, experiment = configured(own.config, overrides)

            def check_code() -> None:
                check_working_directory(own.config, begun_in)
                check_same_settings(own.config, before)

            check_code()

            def rehearsed(runs: Mapping[str, Recorded], workdir: Path) -> None:
                rehearse(experiment, workdir, runs, partial(analyse, module))
                check_code()

            if own.dry_run:
                with early(), TemporaryDirectory() as nowhere:
                    home = own_home(own.workdir)
                    place = home.path if home else Path(nowhere)
                    tell_costs(own, experiment, home, partial(rehearsed, workdir=place))
                return

        workdir = local_path("workdir", own.workdir)

        with ExitStack() as profile:
            ahead = list[str]()  # runs that were left to do

            def all_checked(runs: Mapping[str, Recorded]) -> None:
                ahead.extend(runs)
                with stops.at_once():
                    rehearsed(runs, workdir)
                if own.profile:  # all is checked: now something may be written
                    traces = made_folder("--profile", own.profile)
                    profile.enter_context(jax.profiler.trace(str(traces)))

            finished = run_experiment(
                experiment, workdir, own.only, own.quiet, stops, all_checked
            )
            if own.profile and not local_path("profile", own.profile).is_dir():
                told = "all runs had ended, so nothing was run and there is no trace"
                print(f"warning: --profile={own.profile}: {told}", file=sys.stderr)
        if finished:
            with stops.at_once(), nullcontext() if ahead else early():
                command = command_of(own, overrides)
                finish(experiment, module, ExperimentDirectory(workdir), command)
            if is_first() and not own.quiet:
                print(made(ExperimentDirectory(workdir)))


def tell_costs(
    own: flags.FlagValues,
    experiment: Experiment,
    home: ExperimentDirectory | None,
    rehearsed: Rehearse,
) -> None:
    """The resolved config and what it will cost, here or on a target."""
    say = partial(print, flush=True)  # it takes a while between lines
    select([*experiment.runs], own.only)
    show(experiment, say)
    if own.target:
        forecast_for(experiment, own.only, own.target, say, home, rehearsed)
    else:
        forecast(experiment, own.only, say, home, rehearsed)


def own_home(workdir: str | None) -> ExperimentDirectory | None:
    """The directory of the runs, if it was given."""
    return ExperimentDirectory(local_path("workdir", workdir)) if workdir else None


def check_flags(own: flags.FlagValues) -> None:
    """ConfigError for flags that are missing or do not go together."""
    for name in ("config", "workdir"):
        needed = name != "workdir" or not own.dry_run
        given = own[name].value is not None
        require(given or not needed, f"--{name}", None, "is required")
    silent = own.quiet and own.dry_run
    require(not silent, "--quiet", True, "--dry_run is there to say what will be run")
    if own.profile is not None:
        check_profile(own.profile, own.dry_run)
    if own.target:
        allowed = "--dry_run compiles for devices that are not here"
        require(own.dry_run, "--target", own.target, allowed)
        chosen(own.target)
        compile_only()


def made(home: ExperimentDirectory) -> str:
    """What finished runs left: which claims hold, and where everything is."""
    files = (home.claims, home.answer, home.figure)
    names = [file.name for file in files if file.exists()]
    where = f"{home.path}: " + (", ".join(names) or "finished; no claims, no figure")
    if not home.claims.exists():
        return where
    return f"{told(read_claims(home.claims))}; {where}"


def command_of(own: flags.FlagValues, overrides: Sequence[Override]) -> str:
    """The command that makes all of the same results, whichever part was made now."""
    typed = [f"config={own.config}", f"workdir={own.workdir}"]
    typed += [f"config.{override.text}" for override in overrides]
    return shlex.join(["parity-jax", "run", *(f"--{text}" for text in typed)])


def check_profile(text: str, dry_run: bool) -> None:
    """ConfigError unless a trace can be left there; nothing is written yet."""
    require(not dry_run, "--profile", text, "--dry_run runs nothing and writes nothing")
    path = local_path("profile", text)
    is_free = path.is_dir() or not path.exists()
    require(is_free, "--profile", text, "must be a directory")


def made_folder(name: str, text: str) -> Path:
    """The directory, made; ConfigError if it cannot be."""
    path = local_path(name, text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(name, text, f"cannot be made: {error.strerror}") from None
    return path


def check_working_directory(config: str, begun_in: Path) -> None:
    """ConfigError if the experiment's code went elsewhere: paths would mean others."""
    allowed = f"its code must not change the working directory, to {Path.cwd()}"
    require(Path.cwd() == begun_in, "config", config, allowed)


def check_same_settings(config: str, before: dict[str, str]) -> None:
    """ConfigError if own code changed JAX's settings: its programs would be others."""
    changed = [name for name, value in settings().items() if value != before[name]]
    allowed = f"its code must not change {', '.join(changed)} while it is called"
    require(not changed, "config", config, allowed)


def show(experiment: Experiment, say: Callable[[Any], None]) -> None:
    """Everything that is set, as it will be run, as YAML."""
    runs = {name: to_dict(run) for name, run in resolve(experiment).items()}
    say(ConfigDict(runs))
