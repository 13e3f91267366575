"""What JAX is told before a command uses it."""

import logging
import os
from contextlib import suppress
from pathlib import Path

import jax

from parity_jax.cli.door import one_line
from parity_jax.config import ConfigError, require

# Settings of JAX under which nothing here works.
REFUSED: dict[str, tuple[bool | str, ...]] = {
    "jax_debug_infs": (True,),
    "jax_debug_key_reuse": (True,),
    "jax_debug_nans": (True,),  # members that diverge are frozen and told
    "jax_disable_jit": (True,),
    "jax_no_execution": (True,),
    "jax_numpy_dtype_promotion": ("strict",),
    "jax_transfer_guard": ("disallow", "disallow_explicit"),
}


def without_traceback(record: logging.LogRecord) -> bool:
    """What JAX logs of a plugin that cannot start (no driver, no GPU), in one line."""
    if record.exc_info and record.exc_info[1] is not None:
        record.msg = f"{record.getMessage()}: {one_line(record.exc_info[1])}"
        record.args, record.exc_info = (), None
    return True


def check_settings_of_jax() -> None:
    """ConfigError for one under which nothing here works."""
    for name, refused in REFUSED.items():
        value = getattr(jax.config, name)
        value = getattr(value, "value", value)  # of an enumeration
        require(value not in refused, name.upper(), value, "nothing here works with it")


def set_up_jax() -> None:
    """One CPU device per core unless told (members run side by side); a cache."""
    logging.getLogger("jax._src.xla_bridge").addFilter(without_traceback)
    flag = "xla_force_host_platform_device_count"  # says it already
    num = os.environ.get("JAX_NUM_CPU_DEVICES", "1")
    require(num.strip() != "0", "JAX_NUM_CPU_DEVICES", num, "must be positive")
    with suppress(RuntimeError):  # this process uses JAX already: its devices stay
        told = "JAX_NUM_CPU_DEVICES" in os.environ
        if not told and flag not in os.environ.get("XLA_FLAGS", ""):
            num_cores = len(os.sched_getaffinity(0))
            jax.config.update("jax_num_cpu_devices", num_cores)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        with suppress(RuntimeError):  # no home: compile anew each time
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
            directory = str(cache / "parity_jax")
            jax.config.update("jax_compilation_cache_dir", directory)
    check_settings_of_jax()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        allowed = f"no such device here ({one_line(error)})"
        raise ConfigError("JAX_PLATFORMS", platforms, allowed) from None
