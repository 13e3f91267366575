"""Where a run comes from: lineage.json and the parameters of its parent."""

import datetime
import hashlib
import importlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from flax.core import FrozenDict

from parity_jax.config import ConfigError, differences, require
from parity_jax.config.compare import Difference

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


@dataclass(frozen=True)
class Process:
    """What a process runs on: all that decides a result beside the config."""

    started: str
    device: str
    packages: FrozenDict[str, str]
    commit: str | None  # of this code; None outside a checkout of it
    settings: FrozenDict[str, str]  # of JAX that decide numbers
    own_code: FrozenDict[str, str]  # sha256 of the files of the user's own modules

    def __post_init__(self) -> None:
        try:
            self.when.timestamp()
        except (ValueError, OverflowError):
            allowed = "must be a date as ISO 8601 has it"
            raise ConfigError("started", self.started, allowed) from None

    @property
    def when(self) -> datetime.datetime:
        return datetime.datetime.fromisoformat(self.started)


@dataclass(frozen=True)
class ParentEntry:
    """The parent of a run; several steps if its members started from several."""

    run: str  # its directory, as it was found from the run's own
    step: tuple[int, ...]
    params_sha256: tuple[str, ...]  # of the parameters at each of these steps
    # Training sequences of a member of the parent until each step, its ancestors' too.
    sequences: tuple[int, ...]

    def __post_init__(self) -> None:
        require(bool(self.step), "step", self.step, "must name a step")
        for name in ("params_sha256", "sequences"):
            own, allowed = getattr(self, name), f"must be of each of step={self.step}"
            require(len(own) == len(self.step), name, own, allowed)

    def sequences_at(self, step: int | None) -> int:
        """Those until a step, or the first there is; a parent may have ended earlier
        than where it was to.
        """
        at = self.step[0] if step is None else min(step, max(self.step))
        return self.sequences[self.step.index(at)]


@dataclass(frozen=True)
class Continuation:
    """A later process that went on from a step."""

    step: int
    process: Process
    kept: tuple[int, ...] = ()  # checkpoints of a run that had ended there


@dataclass(frozen=True)
class Imported:
    """Where parameters come from that no run of ours trained."""

    path: str
    safetensors_sha256: str
    model_type: str  # what Hugging Face calls the family


@dataclass(frozen=True)
class Lineage:
    """lineage.json."""

    stage: str
    process: Process
    parent: ParentEntry | None = None
    continued: tuple[Continuation, ...] = ()
    imported: Imported | None = None

    @property
    def last_process(self) -> Process:
        return self.continued[-1].process if self.continued else self.process

    @property
    def kept(self) -> set[int]:
        """Steps whose checkpoints stay, whatever the schedule of now names."""
        return {step for each in self.continued for step in each.kept}

    def continued_at(
        self, step: int, now: Process, kept: Iterable[int] = ()
    ) -> "Lineage":
        later = Continuation(step, now, tuple(kept))
        return replace(self, continued=(*self.continued, later))


GONE = "cannot be imported"


def this_process(own_modules: Iterable[str] = ()) -> Process:
    """What this process runs on, with these modules of the user's own."""
    device = jax.devices()[0]
    return Process(
        started=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        device=f"{device.platform}: {device.device_kind} x {jax.device_count()}",
        packages=FrozenDict({n: importlib.metadata.version(n) for n in PACKAGES}),
        commit=git_commit(),
        settings=FrozenDict(settings()),
        own_code=FrozenDict(own_code(own_modules)),
    )


def own_code(modules: Iterable[str]) -> dict[str, str]:
    """The digest of the file of every module."""
    return {name: module_sha256(name) for name in modules}


def edited_code(then: Process) -> list[Difference]:
    """Which modules of the user's own are not as they were then, or are gone."""
    for module in {*then.own_code} - {*sys.modules}:  # that nothing has made here
        with suppress(Exception, SystemExit):
            importlib.import_module(module)
    now = own_code(then.own_code)
    now |= dict.fromkeys({*now} - {*sys.modules}, GONE)
    return differences(dict(then.own_code), now, "own_code")


def module_sha256(name: str) -> str:
    """Digest of the file of a module; empty if it has none."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


# Settings that change what is computed, and those that change its last bits only.
DECISIVE = (
    "jax_enable_x64",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_high_dynamic_range_gumbel",
)
ROUNDING = (
    "jax_default_matmul_precision",
    "jax_allow_f16_reductions",
    "jax_disable_most_optimizations",
    "jax_exec_time_optimization_effort",
    "jax_memory_fitting_effort",
    "jax_memory_fitting_level",
    "jax_optimization_level",
    "jax_softmax_custom_jvp",
    "jax_use_direct_linearize",
)


def settings() -> dict[str, str]:
    """Those of this process, with the compiler's flags."""
    values = jax.config.values
    found = {name: str(values.get(name)) for name in (*DECISIVE, *ROUNDING)}
    return found | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}


def git_commit() -> str | None:
    """The commit of this code with a "+" if files differ from it.

    None where git is missing, or this code is not part of the repository around it (a
    package that is installed below another project).
    """
    code = Path(__file__).resolve()

    def git(*args: str) -> str:
        # without a lock of the index, which a process that is killed would leave behind
        command = ["git", "--no-optional-locks", "-C", str(code.parent), *args]
        try:
            out = subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError):
            return ""
        return out.stdout.strip()

    if not git("ls-files", code.name):
        return None
    commit = git("rev-parse", "HEAD")
    return (commit + "+" * bool(git("status", "--porcelain"))) or None


def plain(process: Process) -> dict[str, Any]:
    """What two processes are compared by."""
    return {
        "device": process.device,
        "packages": dict(process.packages),
        "commit": process.commit,
        "settings": dict(process.settings),
        "own_code": dict(process.own_code),
    }
