"""Run any experiment: all of its stages, then its figure and claims.

python -m experiments.main --config=experiments/headline.py --workdir=runs/headline \
    [--config.scale=paper] [--config.runs.grpo.num_steps=40 ...]

--config.scale=S is --config=FILE:S, the argument of the experiment's get_config.
Running the same command again continues an interrupted run. --dry_run only tells what
the runs will cost; --profile=DIR leaves a trace (for XProf or Perfetto) of all that is
run, so take few steps.

Exit codes
    0   done
    1   the run failed: full disk, damaged files, directory in use, ... (one line)
    2   a bad config or flag (one line says what is allowed; nothing is written)
    75  SIGTERM or SIGINT came: the steps in progress were finished and saved, the same
        command continues (EX_TEMPFAIL: what a queue should requeue)
"""

import importlib.util
import inspect
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from parity_jax.config import ConfigError, Experiment, from_dict, unknown_name
from parity_jax.forecast import forecast
from parity_jax.interrupt import EX_TEMPFAIL, StoppedError, stop_requests
from parity_jax.results import RunError
from parity_jax.runs import run_experiment

CONFIG = config_flags.DEFINE_config_file("config", help_string="experiments/<name>.py")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only tell what the runs will cost.")
PROFILE = flags.DEFINE_string("profile", None, "Directory of a trace of the runs.")
PREFIX = "--config."
SCALE = PREFIX + "scale="


def load_experiment(path: str) -> ModuleType:
    """The module of an experiment file, given as FILE or FILE:SCALE."""
    file = path.partition(":")[0]
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    if spec is None or spec.loader is None or not Path(file).exists():
        raise ConfigError("config", file, "must be an experiment file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with one line and exit code 2 for whatever it cannot take."""
    try:
        argv = with_scale(argv)
        check_overrides(argv)
        return flags.FLAGS(argv)
    except ConfigError as error:
        sys.exit(fail(error))
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError) as error:
        sys.exit(fail(str(error).splitlines()[0]))


def config_file(argv: list[str]) -> str:
    """The experiment file of --config=FILE; empty without one."""
    files = [a.removeprefix("--config=") for a in argv if a.startswith("--config=")]
    return files[-1] if files else ""


def with_scale(argv: list[str]) -> list[str]:
    """--config=FILE --config.scale=S as --config=FILE:S, which config_flags reads."""
    scales = [a for a in argv if a.startswith(SCALE)]
    suffix = "".join(":" + a.removeprefix(SCALE) for a in scales[-1:])
    return [
        a + suffix if a.startswith("--config=") else a for a in argv if a not in scales
    ]


def default_config(path: str) -> ConfigDict:
    """What get_config of FILE or FILE:SCALE gives."""
    get_config = load_experiment(path).get_config
    scale = path.split(":")[1:]
    if scale and not inspect.signature(get_config).parameters:
        raise ConfigError("scale", scale[0], "this experiment has only one scale")
    return get_config(*scale)


def check_overrides(argv: list[str]) -> None:
    """ConfigError for an override of a field that does not exist or of a wrong type."""
    if not config_file(argv):
        return
    config = default_config(config_file(argv))
    for argument in argv:
        if argument.startswith(PREFIX):
            path, _, value = argument.removeprefix(PREFIX).partition("=")
            check_override(config, path.split("."), value)


def check_override(config: ConfigDict, path: list[str], value: str) -> None:
    node = config
    for depth, name in enumerate(path):
        if not isinstance(node, ConfigDict) or name not in node:
            parent = ".".join(path[:depth])
            valid = node.keys() if isinstance(node, ConfigDict) else []
            error = unknown_name(name, value, valid)
            raise error.under(parent) if parent else error
        node = node[name]
    kinds = {int: "a whole number", float: "a number"}
    if type(node) in kinds:
        try:
            type(node)(value)
        except ValueError:
            allowed = f"must be {kinds[type(node)]}"
            raise ConfigError(".".join(path), value, allowed) from None


def fail(error: object, code: int = 2) -> int:
    """Say what is wrong in one line; the exit code, by default of a bad config."""
    print(f"error: {error}", file=sys.stderr)
    return code


def set_up_jax() -> None:
    """One CPU device per core (members run side by side); keep compiled programs."""
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "parity_jax"))


def is_quiet() -> bool:
    """Whether --verbosity asks for silence.

    Without the flag our progress is shown, and of the libraries only warnings.
    """
    if flags.FLAGS["verbosity"].present:
        return logging.get_verbosity() < 0
    logging.set_verbosity(logging.WARNING)
    return False


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        return fail(f"unexpected argument {argv[1]!r}: options start with --")
    for name, flag in (("config", CONFIG), ("workdir", WORKDIR)):
        if flag.value is None:
            return fail(f"--{name} is required")
    try:
        quiet = is_quiet()
        experiment = from_dict(Experiment, CONFIG.value.to_dict())
        set_up_jax()
        workdir = Path(str(WORKDIR.value))
        if DRY_RUN.value:
            forecast(experiment, print)
            return 0
        trace = jax.profiler.trace(PROFILE.value) if PROFILE.value else nullcontext()
        with trace, stop_requests() as should_stop:
            run_experiment(experiment, workdir, quiet, should_stop)
        load_experiment(config_file(sys.argv)).analyse(workdir)
    except ConfigError as error:
        return fail(error)
    except StoppedError as error:
        return fail(f"{error}; the same command continues", EX_TEMPFAIL)
    except (RunError, OSError) as error:
        return fail(error, 1)
    return 0


def run() -> None:
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    run()
