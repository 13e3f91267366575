"""Accelerators that are not here: what programs compiled for them need.

XLA compiles for a described device without having one. Its plugins are extras of this
package: `cuda13` and `tpu`.
"""

import os
import time
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from parity_jax.config import ConfigError, require
from parity_jax.platform import made_for, platform
from parity_jax.population import Population
from parity_jax.program import compiler_options, memory_needed
from parity_jax.runs.roofline import products, roofline_seconds

GIB = 2**30

# What XLA has to know of an H100 SXM; the numbers are NVIDIA's.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclass(frozen=True)
class Target:
    """Devices to compile for."""

    platform: str  # of JAX: gpu or tpu
    topology: str  # its name for XLA
    memory: int  # bytes of a device
    # Published peaks of a device: products a second by what they multiply, dense, and
    # bytes of its memory a second
    flops: tuple[tuple[str, float], ...]
    bandwidth: float
    options: tuple[tuple[str, Any], ...] = ()  # of the compiler

    def devices(self) -> list[Any]:
        """Descriptions of the devices."""
        name, platform, more = self.topology, "tpu", {}
        if self.platform == "gpu":
            more = {"topology": self.topology, "target_config": H100}
            name, platform = "h100", "cuda"
        return list(topologies.get_topology_desc(name, platform, **more).devices)


# Without a device Triton's products are not tuned, and some shapes find no tiles.
NO_TRITON = (("xla_gpu_enable_triton_gemm", False),)
# An H100 SXM multiplies float32 as TF32; TPUs round it to bfloat16 (JAX's default).
H100_PEAK = ((("bfloat16", 989e12), ("float32", 495e12)), 3.35e12)
V5E_PEAK = ((("bfloat16", 197e12), ("float32", 197e12)), 819e9)
V5P_PEAK = ((("bfloat16", 459e12), ("float32", 459e12)), 2765e9)
TARGETS = {
    "h100x1": Target("gpu", "1x1x1", 80 * 10**9, *H100_PEAK, NO_TRITON),
    "h100x8": Target("gpu", "1x1x8", 80 * 10**9, *H100_PEAK, NO_TRITON),
    "v5e-4": Target("tpu", "v5e:2x2", 16 * GIB, *V5E_PEAK),
    "v5e-16": Target("tpu", "v5e:4x4", 16 * GIB, *V5E_PEAK),
    "v5p-8": Target("tpu", "v5p:2x2x2", 95 * GIB, *V5P_PEAK),
}


def compile_only() -> None:
    """Before JAX is used: programs will be compiled for a target, none is run."""
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TF_CPP_MIN_LOG_LEVEL": "2"}
    jax.config.update("jax_platforms", "cpu")


def chosen(name: str) -> Target:
    """The target of this name."""
    require(name in TARGETS, "--target", name, f"must be one of {', '.join(TARGETS)}")
    return TARGETS[name]


def devices_of(name: str) -> list[Any]:
    """Descriptions of a target's devices; ConfigError without XLA's plugin for them."""
    target = chosen(name)
    try:
        return target.devices()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        extra = "cuda13" if target.platform == "gpu" else "tpu"
        reason = str(error).strip().splitlines()[0]
        allowed = f"needs XLA's plugin, pip install -e .[{extra}] ({reason})"
        raise ConfigError("--target", name, allowed) from None


def compiled_for(target: Target, program: Population) -> dict[str, Any]:
    """What a step of all members needs of a device, and the seconds of compiling it.

    The program was made for the target's devices. Rewards that processes on the host
    judge are left out of it.
    """
    with made_for(target.platform):
        compiled, seconds = compiled_step(program, dict(target.options))
        traced = program.run.trace(*program.arguments())
    work = products(traced.jaxpr.jaxpr, program.layout.mesh.size)
    sizes, needed = compiled.memory_analysis(), memory_needed(compiled)
    params = jax.tree.leaves(program.arguments()[0].params)
    return {
        "parameters": sum(x.size for x in params),
        "argument_bytes": sizes.argument_size_in_bytes,
        "temporary_bytes": sizes.temp_size_in_bytes,
        "code_bytes": sizes.generated_code_size_in_bytes,
        "device_bytes": needed,
        "memory_bytes": target.memory,
        "fits": needed < target.memory,
        "product_flops": sum(work.flops.values()),
        "product_bytes": work.bytes,
        "roofline_seconds": roofline_seconds(
            work, dict(target.flops), target.bandwidth
        ),
        **seconds,
    }


def compiled_step(
    program: Population, options: dict[str, Any] | None = None
) -> tuple[Any, dict[str, float]]:
    """A step of all members, and the seconds of tracing and of compiling it."""
    started = time.perf_counter()
    lowered = program.run.trace(*program.arguments()).lower()
    traced = time.perf_counter()
    told = compiler_options(platform()) | (options or {})
    compiled = lowered.compile(compiler_options=told)
    ended = time.perf_counter()
    seconds = {"trace_seconds": traced - started, "compile_seconds": ended - traced}
    return compiled, {name: round(x, 1) for name, x in seconds.items()}
