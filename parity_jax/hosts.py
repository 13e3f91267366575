"""Several processes, on one host or many, that train one model together.

All of them do the same things in the same order; the first one alone writes what is not
an array. One that is alone pays nothing: it is the first, and nobody is waited for.
"""

import ctypes
import json
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from parity_jax.config import ConfigError, require

# A process that says nothing for so long is dead; the others end.
HEARTBEAT_SECONDS = 30
START_SECONDS = 300  # in which all processes have to be there
LEAVE_SECONDS = 10  # in which they all have to come to the end
MAX_PORT = 2**16 - 1
POLL = 0.2  # seconds between looks at a thread that waits for them
LOST = "another process of this run is gone; the same command continues"


class AbsentError(RuntimeError):
    """Another process of a run did not come."""


@dataclass
class Group:
    """The processes of a run, and which of them this one is."""

    index: int = 0
    size: int = 1
    code: int = os.EX_TEMPFAIL  # with which to end when another is gone
    is_told: bool = False  # why this process ends


GROUP = Group()


def is_first() -> bool:
    """Whether this process writes what is not an array."""
    return GROUP.index == 0


def is_alone() -> bool:
    """Whether there is no other process."""
    return GROUP.size == 1


@contextmanager
def by_itself() -> Iterator[None]:
    """What this process does here it does for itself: the others do it too."""
    place = GROUP.index, GROUP.size
    GROUP.index, GROUP.size = 0, 1
    try:
        yield
    finally:
        GROUP.index, GROUP.size = place


def place_in_slurm(env: Mapping[str, str]) -> tuple[int, int] | None:
    """Which task this is of how many, in a Slurm step with several of them."""
    names = ("SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    if any(name not in env for name in names) or env[names[2]] == "1":
        return None
    return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"])


def address_in_slurm(env: Mapping[str, str]) -> str:
    """Where the first task of a step listens, as JAX has it: HOST:PORT."""
    told = env.get("JAX_COORDINATOR_ADDRESS", "")
    head, _, rest = env["SLURM_STEP_NODELIST"].partition("[")  # "a,b", "a[01-3,7],b"
    number = "" if "," in head else re.split(r"[,\-\]]", rest)[0]
    port = 65536 - 2**12 + int(env["SLURM_JOB_ID"]) % 2**12
    return told or f"{head.partition(',')[0]}{number}:{port}"


def join(coordinator: str, num_processes: int, process_id: int) -> None:
    """Meet the other processes of a run, before JAX is used.

    coordinator    HOST:PORT of the first process; empty with num_processes = 0: as
                   Slurm says, and nobody outside of a step with several tasks

    ConfigError for what cannot be, AbsentError if they do not come.
    """
    place = place_in_slurm(os.environ)
    if num_processes == 0:
        told = coordinator or process_id >= 0
        require(not told, "--num_processes", 0, "must be given too")
        if place is None:
            return
        process_id, num_processes = place
        address = address_in_slurm(os.environ)
    else:
        require(num_processes > 0, "--num_processes", num_processes, "must be positive")
        is_right = 0 <= process_id < num_processes
        allowed = f"must be in [0, {num_processes - 1}]"
        require(is_right, "--process_id", process_id, allowed)
        host, _, port = coordinator.rpartition(":")
        is_right = bool(host) and port.isdecimal() and 0 < int(port) <= MAX_PORT
        allowed = f"must be HOST:PORT of the first process, PORT at most {MAX_PORT}"
        require(is_right, "--coordinator", coordinator, allowed)
        address = coordinator
    if num_processes == 1:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # it would take SIGTERM from us
    jax.config.update("jax_enable_preemption_service", False)
    end_with_the_others()
    initialize = partial(
        jax.distributed.initialize,
        address,
        num_processes,
        process_id,
        # or else Slurm's tasks get one GPU each, whatever they may see
        cluster_detection_method="deactivate",
        initialization_timeout=START_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=LEAVE_SECONDS,
    )
    try:
        while_signals_are_heard(initialize)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        told = f"the processes of this run did not meet: {reason}"
        raise AbsentError(told) from None
    GROUP.index, GROUP.size = process_id, num_processes


def while_signals_are_heard(function: Callable[[], None]) -> None:
    """Call a function that waits outside of Python, where no signal is handled."""
    failed: list[Exception] = []

    def call() -> None:
        try:
            function()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL)
    if failed:
        raise failed[0]


def leave(code: int) -> None:
    """Wait for the others, which end as well, and leave them with this exit code."""
    if is_alone():
        return
    GROUP.code, is_broken, GROUP.is_told = code, GROUP.is_told, True
    if not is_broken:
        with suppress(Exception):  # they are gone
            jax.distributed.shutdown()


def give_up() -> None:
    """Another process is gone: there is nobody to wait for."""
    GROUP.is_told = True


def end_with_the_others() -> None:
    """When another process is gone, end with a line and GROUP.code.

    JAX can only abort then, with pages of its C++ stack. What libraries write past
    Python is kept in a file; whatever else they abort for is shown.
    """
    real = os.dup(2)
    kept = tempfile.TemporaryFile()  # noqa: SIM115, open as long as the process is
    for name, number in (("stdout", 1), ("stderr", 2)):
        getattr(sys, name).flush()
        setattr(sys, name, os.fdopen(os.dup(number), "w", buffering=1))
        os.dup2(kept.fileno(), number)

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(number: int) -> None:
        text = os.pread(kept.fileno(), 1 << 20, 0)
        if b"JAX distributed service detected" in text:
            if not GROUP.is_told:
                os.write(real, f"error: {LOST}\n".encode())
            os._exit(GROUP.code)
        os.write(real, text)
        os._exit(128 + number)

    _KEPT.extend([aborted, kept])
    ctypes.CDLL(None).signal(signal.SIGABRT, aborted)


_KEPT: list[Any] = []  # what must live as long as the process


def meet(where: str) -> None:
    """Return when all processes are here."""
    if not is_alone():
        multihost_utils.sync_global_devices(where)


def any_of(flag: bool) -> bool:
    """Whether it is true in any process; all of them hear the same."""
    if is_alone():
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def of_first(number: int) -> int:
    """The number that the first process has."""
    if is_alone():
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def of_all(value: Any) -> list[Any]:
    """What every process has, in their order; plain JSON."""
    if is_alone():
        return [value]
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(own.size))
    padded = np.pad(own, (0, int(sizes.max()) - own.size))
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(r[:n])) for r, n in zip(rows, sizes, strict=True)]


def require_same(name: str, value: Any) -> None:
    """ConfigError, in all processes, unless every one of them has this value."""
    told = of_all(value)
    index = next((i for i, other in enumerate(told) if other != told[0]), 0)
    allowed = f"must be what the others of this run have, {told[0]!r}; a task of a step"
    allowed += (
        " with several is no run of its own (give that one to a step of one task)"
    )
    if index:
        raise ConfigError(f"{name} of process {index}", told[index], allowed)


def on_host(tree: Any) -> Any:
    """Arrays that every process can read, whatever devices hold them."""
    if is_alone():
        return tree
    return jax.tree.map(_whole, tree)


def _whole(x: Any) -> np.ndarray:
    if not isinstance(x, jax.Array) or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def spread_over_hosts(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array that every process has whole, or has laid out already, so laid out."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return jax.device_put(x, sharding)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = spread_over_hosts(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data)
    own = np.asarray(x)
    return jax.make_array_from_callback(own.shape, sharding, lambda i: own[i])


def is_of_others(error: BaseException) -> bool:
    """Whether an error is that another process is gone."""
    return not is_alone() and any(
        name in str(error) for name in ("Gloo", "CoordinationService", "Barrier")
    )
