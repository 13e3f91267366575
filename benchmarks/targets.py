"""Compile training steps for accelerators that are not there: memory as a fact.

.venv-targets/bin/python -m benchmarks.targets [--only=NAME,..] [--missing]

`make targets` sets up .venv-targets (the plugins of XLA for CUDA and TPU, no drivers)
and writes results/targets.json and results/targets.md. For every model, stage and
target: bytes of arguments and temporaries on a device, seconds of compilation, and
whether it fits the device's memory. Compiled, not run: nothing here is a time of a
step. Fusions are the compiler's, but its kernels are not tuned without a device.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from benchmarks.steps import Step, llama_steps, population_steps, smollm2_steps
from parity_jax.config import to_dict
from parity_jax.mesh import MeshConfig
from parity_jax.platform import made_for
from parity_jax.runs.lineage import git_commit
from parity_jax.runs.targets import TARGETS, compile_only, compiled_for

RESULTS = Path(__file__).parent.parent / "results"
GIB = 2**30

# The mesh of a member of Llama's sizes: fsdp x tensor.
MESHES = {
    "h100x1": MeshConfig(),
    "h100x8": MeshConfig(fsdp=8),
    "v5e-16": MeshConfig(fsdp=16),
    "v5p-8": MeshConfig(fsdp=8),
}
# Where that does not fit: the vocabulary split as well, 8 responses at once.
TIGHT = {"Llama-3.1-8B on v5e-16": (MeshConfig(fsdp=8, tensor=2), 8)}


def rows() -> dict[str, tuple[Step, str, MeshConfig]]:
    """Step, target and mesh of every row of the table."""
    chosen = {}
    for target, mesh in MESHES.items():
        for step, cfg in llama_steps().items():
            model = f"{step.split()[0]} on {target}"
            own, size = TIGHT.get(model, (mesh, 0))
            few = replace(cfg, model=replace(cfg.model, gradient_rows=size))
            chosen[f"{step} on {target}"] = (few, target, own)
    small = smollm2_steps() | population_steps()
    for target, steps in (("h100x1", small), ("v5e-4", population_steps())):
        chosen |= {
            f"{step} on {target}": (cfg, target, MeshConfig())
            for step, cfg in steps.items()
        }
    return chosen


def main(only: list[str], is_missing_only: bool) -> None:
    """Compile all, or those whose name holds one of these texts, or those that the
    table does not have; every row is written as it is done.
    """
    compile_only()
    path = RESULTS / "targets.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    chosen = rows()
    for name, (step, target_name, mesh) in chosen.items():
        if only and not any(part in name for part in only):
            continue
        if is_missing_only and name in found:
            continue
        target = TARGETS[target_name]
        try:
            with made_for(target.platform):
                program = step.population(mesh, target.devices())
            row = compiled_for(target, program)
        except jax.errors.JaxRuntimeError as error:
            row = {"fits": False, "error": str(error).splitlines()[0][:300]}
        config = {"task": step.task, "model": step.model, "stage": step.stage}
        row["config"] = {k: to_dict(v) for k, v in config.items()}
        row["config"]["mesh"] = to_dict(mesh)
        row |= {"jax": jax.__version__, "commit": git_commit()}
        found[name] = row
        found = {name: found[name] for name in chosen if name in found}
        told = {k: v for k, v in row.items() if k != "config"}
        print(name, json.dumps(told), flush=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
        (RESULTS / "targets.md").write_text(table(found))


def table(found: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "# Compiled for accelerators that were not there",
        "",
        "`make targets`. Llama and SmolLM2: one member, bfloat16 compute, float32",
        "parameters and AdamW, 256 prompt and 512 response tokens, a step of 64",
        "sequences or of 64 prompts x 8 responses. The others are paper-scale runs of",
        "the experiments, all members in one program. Bytes are a device's, from the",
        "compiler's memory analysis. 8B on v5e-16 is trained on 8 responses at once",
        "(`model.gradient_rows`). At least: the products of a step, all responses",
        "long, at the device's published peaks of computing and of memory, the longer",
        "of both: a bound. Nothing was run here; [what was](measured.md).",
        "",
        "| step | mesh | arguments | temporaries | needed | memory | fits | TFLOP "
        "| at least | compiled |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        mesh = row["config"]["mesh"]
        shape = f"{mesh['fsdp']} x {mesh['tensor']}"
        if "error" in row:
            lines.append(f"| {name} | {shape} | | | | | no: {row['error']} | | | |")
            continue
        parts = ("argument", "temporary", "device", "memory")
        sizes = [row[f"{part}_bytes"] for part in parts]
        cells = " | ".join(f"{size / GIB:.1f} GiB" for size in sizes)
        fits, seconds = "yes" if row["fits"] else "no", row["compile_seconds"]
        bound = " | "
        if "product_flops" in row:
            flops = row["product_flops"] / 1e12
            bound = f"{flops:.3g} | {row['roofline_seconds']:.3g} s"
        lines.append(
            f"| {name} | {shape} | {cells} | {fits} | {bound} | {seconds:.0f} s |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    given = [a for a in sys.argv[1:] if a != "--missing"]
    names = [part for a in given for part in a.removeprefix("--only=").split(",")]
    main(names, "--missing" in sys.argv)
