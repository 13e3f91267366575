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
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import topologies

from parity_jax.config import to_dict
from parity_jax.evaluate import EvaluateConfig, make_evaluate
from parity_jax.hypers import Hypers
from parity_jax.mesh import MeshConfig, spread
from parity_jax.models import RopeScaling, TransformerConfig, llama
from parity_jax.optim import OptimizerConfig
from parity_jax.platform import made_for
from parity_jax.population import PopulationConfig, make_population, memory_needed
from parity_jax.responses import num_tokens, response_mask
from parity_jax.runs.lineage import git_commit
from parity_jax.stages import (
    PolicyGradientConfig,
    PretrainConfig,
    RolloutConfig,
    StageConfig,
)
from parity_jax.tasks import Solution, TaskConfig
from parity_jax.types import Batch, Key, Prompt, ResponseFormat

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


@dataclass(frozen=True)
class TokensConfig(TaskConfig):
    """A stand-in for text of Llama's sizes: random prompts, padded on the left."""

    vocab_size: int = 128_256
    prompt_len: int = 256
    response_len: int = 512

    def make(self) -> "Tokens":
        return Tokens(self)


class Tokens:
    """The task of a `TokensConfig`; rewards count tokens, as cheap as real ones."""

    data = ()

    def __init__(self, cfg: TokensConfig):
        self.vocab_size, self.prompt_len = cfg.vocab_size, cfg.prompt_len
        self.format = ResponseFormat(0, (1, 2, 3), cfg.response_len, short_len=16)
        self.rewards = {"e2e": self.reward, "cot": self.reward}

    def sample_prompts(self, key: Key, num_prompts: int, data: Any = ()) -> Prompt:
        shape = (num_prompts, self.prompt_len)
        token_BxL = jax.random.randint(key, shape, 4, self.vocab_size)
        length_Bx1 = jax.random.randint(key, (num_prompts, 1), 8, self.prompt_len + 1)
        mask_BxL = jnp.arange(self.prompt_len)[None] >= self.prompt_len - length_Bx1
        return Prompt(jnp.where(mask_BxL, token_BxL, 0), mask_BxL)

    def demonstrate(
        self, key: Key, prompt: Prompt, hypers: Hypers, data: Any = ()
    ) -> Batch:
        shape = (prompt.token.shape[0], self.format.max_len)
        response_BxT = jax.random.randint(key, shape, 0, self.vocab_size)
        return Batch(prompt, response_BxT, response_mask(response_BxT, self.format))

    def solution(self, prompt: Prompt, data: Any = ()) -> Solution:
        shape = (prompt.token.shape[0], self.format.max_len)
        one_BxT = jnp.ones(shape, jnp.int32)
        return Solution(one_BxT, one_BxT[:, None])

    def reward(self, prompt: Prompt, response_BxGxT: Array, data: Any = ()) -> Array:
        return (num_tokens(response_BxGxT, self.format) % 2).astype(jnp.float32)

    def is_long(self, response_BxGxT: Array) -> Array:
        return num_tokens(response_BxGxT, self.format) > self.format.short_len

    def diagnostics(self, prompt: Prompt, response_BxGxT: Array, data: Any) -> Any:
        return {}

    def to_text(self, token_T: Any) -> str:
        return " ".join(map(str, np.asarray(token_T)))

    def from_text(self, text: str) -> np.ndarray:
        return np.array(text.split(), np.int32)

    def read_prompt(self, line: str) -> np.ndarray:
        return self.from_text(line)


def llama3(depth: int, width: int, **overrides: Any) -> TransformerConfig:
    """A Llama 3.1 or 3.2 as its config.json says."""
    preset = dict(num_heads=32, num_kv_heads=8, head_size=128, dtype="bfloat16")
    preset |= dict(rope_scaling=RopeScaling(), scan=True, remat=True)
    return llama(depth, width, **preset | overrides)


LONG_ROPE = RopeScaling(factor=32.0)
MODELS = {
    "Llama-3.2-1B": llama3(
        16, 2048, mlp_width=8192, head_size=64, tie_embedding=True,
        rope_scaling=LONG_ROPE,
    ),
    "Llama-3.2-3B": llama3(
        28, 3072, mlp_width=8192, num_heads=24, tie_embedding=True,
        rope_scaling=LONG_ROPE,
    ),
    "Llama-3.1-8B": llama3(32, 4096, mlp_width=14336),
}  # fmt: skip
OPTIMIZER = OptimizerConfig(warmup_steps=20, max_grad_norm=1.0)
# 64 sequences a step; 64 prompts x 8 responses with the KL to a reference.
STAGES: dict[str, StageConfig] = {
    "next-token": PretrainConfig(batch_size=64, optimizer=OPTIMIZER),
    "GRPO": PolicyGradientConfig(
        rollout=RolloutConfig(num_prompts=64, num_generations=8), optimizer=OPTIMIZER
    ),
}
# The mesh of a member: fsdp x tensor.
MESHES = {
    "h100x1": MeshConfig(),
    "h100x8": MeshConfig(fsdp=8),
    "v5e-16": MeshConfig(fsdp=16),
    "v5p-8": MeshConfig(fsdp=8),
}


def compiled_for(
    target: Target, task_cfg: TaskConfig, model_cfg: TransformerConfig,
    stage_cfg: StageConfig, mesh: MeshConfig,
) -> dict[str, Any]:  # fmt: skip
    """Bytes of a device and seconds of compilation of one step."""
    with made_for(target.platform):
        task = task_cfg.make()
        model = spread(model_cfg.make(task), mesh)
        evaluate = make_evaluate(EvaluateConfig(8, ()), task, model)
        stage = stage_cfg.make(task, model, evaluate)
        program = make_population(
            PopulationConfig(), stage, {"seed": (0,)}, Hypers(), None, mesh,
            target.devices(),
        )  # fmt: skip
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
        for model_name, model_cfg in MODELS.items():
            for stage_name, stage_cfg in STAGES.items():
                name = f"{model_name} {stage_name} on {target_name}"
                if only and not any(part in name for part in only):
                    continue
                if is_missing_only and name in found:
                    continue
                mesh, task = MESHES[target_name], TokensConfig()
                try:
                    row = compiled_for(target, task, model_cfg, stage_cfg, mesh)
                except jax.errors.JaxRuntimeError as error:
                    row = {"fits": False, "error": str(error).splitlines()[0][:300]}
                config = {"task": task, "model": model_cfg, "stage": stage_cfg}
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
