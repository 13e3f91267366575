"""Compile training steps for accelerators that are not there: memory as a fact.

.venv-targets/bin/python -m benchmarks.targets [--only=NAME,..] [--missing]

`make targets` sets up .venv-targets (the plugins of XLA for CUDA and TPU, no drivers)
and writes results/targets.json and results/targets.md. For every model, stage and
target: bytes of arguments and temporaries on a device, seconds of compilation, and
whether it fits the device's memory. Compiled, not run: nothing here is a time of a
step. Fusions are the compiler's, but its kernels are not tuned without a device.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost"}
os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TF_CPP_MIN_LOG_LEVEL": "2"}

import jax
from jax.experimental import topologies

from benchmarks.steps import Step, llama_steps
from parity_jax.config import to_dict
from parity_jax.mesh import MeshConfig
from parity_jax.platform import made_for
from parity_jax.population import memory_needed
from parity_jax.runs.lineage import git_commit

RESULTS = Path(__file__).parent.parent / "results"
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
    options: tuple[tuple[str, Any], ...] = ()  # of the compiler

    def devices(self) -> list[Any]:
        """Descriptions of the devices."""
        if self.platform == "gpu":
            topology = topologies.get_topology_desc(
                platform="cuda",
                topology_name="h100",
                topology=self.topology,
                target_config=H100,
            )
        else:
            topology = topologies.get_topology_desc(
                platform="tpu", topology_name=self.topology
            )
        return list(topology.devices)


# Without a device Triton's products are not tuned, and some shapes find no tiles.
NO_TRITON = (("xla_gpu_enable_triton_gemm", False),)
TARGETS = {
    "h100x1": Target("gpu", "1x1x1", 80 * 10**9, NO_TRITON),
    "h100x8": Target("gpu", "1x1x8", 80 * 10**9, NO_TRITON),
    "v5e-16": Target("tpu", "v5e:4x4", 16 * GIB),
    "v5p-8": Target("tpu", "v5p:2x2x2", 95 * GIB),
}


# The mesh of a member: fsdp x tensor.
MESHES = {
    "h100x1": MeshConfig(),
    "h100x8": MeshConfig(fsdp=8),
    "v5e-16": MeshConfig(fsdp=16),
    "v5p-8": MeshConfig(fsdp=8),
}


def compiled_for(target: Target, step: Step, mesh: MeshConfig) -> dict[str, Any]:
    """Bytes of a device and seconds of compilation of one step."""
    with made_for(target.platform):
        program = step.population(mesh, target.devices())
        started = time.perf_counter()
        lowered = program.run.lower(*program.arguments())
        traced = time.perf_counter()
        compiled = lowered.compile(compiler_options=dict(target.options))
        seconds = time.perf_counter() - traced
    sizes, needed = compiled.memory_analysis(), memory_needed(compiled)
    states = program.arguments()[0]
    num_params = sum(x.size for x in jax.tree.leaves(states.params))
    return {
        "parameters": num_params,
        "argument_bytes": sizes.argument_size_in_bytes,
        "temporary_bytes": sizes.temp_size_in_bytes,
        "code_bytes": sizes.generated_code_size_in_bytes,
        "device_bytes": needed,
        "memory_bytes": target.memory,
        "fits": needed < target.memory,
        "trace_seconds": round(traced - started, 1),
        "compile_seconds": round(seconds, 1),
    }


def main(only: list[str], is_missing_only: bool) -> None:
    """Compile all, or those whose name holds one of these texts, or those that the
    table does not have; every row is written as it is done.
    """
    path = RESULTS / "targets.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    for target_name, target in TARGETS.items():
        for step_name, step in llama_steps().items():
            name = f"{step_name} on {target_name}"
            if only and not any(part in name for part in only):
                continue
            if is_missing_only and name in found:
                continue
            mesh = MESHES[target_name]
            try:
                row = compiled_for(target, step, mesh)
            except jax.errors.JaxRuntimeError as error:
                row = {"fits": False, "error": str(error).splitlines()[0][:300]}
            config = {"task": step.task, "model": step.model, "stage": step.stage}
            row["config"] = {k: to_dict(v) for k, v in config.items()}
            row["config"]["mesh"] = to_dict(mesh)
            row |= {"jax": jax.__version__, "commit": git_commit()}
            found[name] = row
            told = {k: v for k, v in row.items() if k != "config"}
            print(name, json.dumps(told), flush=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
            (RESULTS / "targets.md").write_text(table(found))


def table(found: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "# Compiled for accelerators that were not there",
        "",
        "`make targets`; one member, bfloat16 compute, float32 parameters and AdamW,",
        "256 prompt and 512 response tokens, a step of 64 sequences or of 64 prompts",
        "x 8 responses. Bytes are a device's, from the compiler's memory analysis.",
        "Nothing was run.",
        "",
        "| step | mesh | arguments | temporaries | needed | memory | fits | compiled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        mesh = row["config"]["mesh"]
        shape = f"{mesh['fsdp']} x {mesh['tensor']}"
        if "error" in row:
            lines.append(f"| {name} | {shape} | | | | | no: {row['error']} | |")
            continue
        parts = ("argument", "temporary", "device", "memory")
        sizes = [row[f"{part}_bytes"] for part in parts]
        cells = " | ".join(f"{size / GIB:.1f} GiB" for size in sizes)
        fits, seconds = "yes" if row["fits"] else "no", row["compile_seconds"]
        lines.append(f"| {name} | {shape} | {cells} | {fits} | {seconds:.0f} s |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    given = [a for a in sys.argv[1:] if a != "--missing"]
    names = [part for a in given for part in a.removeprefix("--only=").split(",")]
    main(names, "--missing" in sys.argv)
