"""Run training steps on the accelerator that is here: forecasts against reality.

python -m benchmarks.measured [--only=NAME,..]

Every step runs in a process of its own, from random weights. Writes
results/measured.json and results/measured.md: bytes that the compiler's memory analysis
gives beside the most that was allocated, seconds of compilation and of a step (median
of windows), and the kernels that a step launched (from a trace of one). Responses of
GRPO are those of an untrained model.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from benchmarks.steps import Step, llama_steps, population_steps, smollm2_steps
from parity_jax.config import to_dict
from parity_jax.program import memory_needed
from parity_jax.runs.files import write_json
from parity_jax.runs.lineage import git_commit
from parity_jax.runs.targets import compiled_step

RESULTS = Path(__file__).parent.parent / "results"
GIB = 2**30
NUM_WINDOWS, WINDOW_SECONDS, ROW_SECONDS = 5, 1.0, 40.0


def steps() -> dict[str, Step]:
    """Those that one accelerator may hold."""
    return smollm2_steps() | llama_steps() | population_steps()


def measured(step: Step) -> dict[str, Any]:
    """Bytes and seconds of one step on the first device."""
    device = jax.devices()[0]
    program = step.population()
    compiled, seconds = compiled_step(program)
    states, metrics = program.init(None), program.no_metrics()
    num_params = sum(x.size for x in jax.tree.leaves(states.params))

    def window(num_steps: int) -> float:
        nonlocal states, metrics
        begun = time.perf_counter()
        states, metrics = compiled(states, metrics, num_steps, program.data)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - begun) / num_steps

    window(1)  # kernels are loaded, buffers are there
    first = window(1)
    num_steps = max(1, int(WINDOW_SECONDS / first))
    num_windows = max(1, min(NUM_WINDOWS, int(ROW_SECONDS / (num_steps * first))))
    each = [window(num_steps) for _ in range(num_windows)]
    kernels = num_kernels(lambda: window(1))
    stats, needed = device.memory_stats() or {}, memory_needed(compiled)
    return {
        "members": len(program.labels),
        "parameters": num_params // len(program.labels),
        "sequences": step.stage.sequences_per_step,
        "device_bytes": needed,
        "peak_bytes": stats.get("peak_bytes_in_use"),
        "memory_bytes": stats.get("bytes_limit"),
        **seconds,
        "step_seconds": statistics.median(each),
        "step_seconds_all": each,
        "kernels": kernels,
        "loss": float(metrics["loss"].total.sum() / metrics["loss"].count.sum()),
        "device": device.device_kind,
        "config": {"task": to_dict(step.task), "model": to_dict(step.model)}
        | {"stage": to_dict(step.stage)},
        "jax": jax.__version__,
        "commit": git_commit(),
    }


def num_kernels(step: Callable[[], Any]) -> int:
    """Kernels and copies that a GPU ran in a step, counted in a trace."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            step()
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = jax.profiler.ProfileData.from_file(str(path)).planes
        return sum(
            1
            for plane in planes
            if plane.name.startswith("/device:GPU")
            for line in plane.lines
            if line.name.startswith("Stream")
            for _ in line.events
        )


def main(only: list[str]) -> None:
    """Measure all, or those whose name holds one of these texts."""
    path = RESULTS / "measured.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    forecasts = json.loads((RESULTS / "targets.json").read_text())
    for name in steps():
        if only and not any(part in name for part in only):
            continue
        command = [sys.executable, "-m", "benchmarks.measured", f"--step={name}"]
        environment = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
        done = subprocess.run(
            command, check=False, env=environment, capture_output=True, text=True
        )
        lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
        if done.returncode:
            told = [line for line in lines if "Error" in line or "RESOURCE" in line]
            found[name] = {"error": (told or lines)[-1][:300], "commit": git_commit()}
        else:
            found[name] = json.loads(lines[-1])
        shown = {k: v for k, v in found[name].items() if k != "config"}
        print(name, json.dumps(shown), flush=True)
        write_json(path, found)
        (RESULTS / "measured.md").write_text(table(found, forecasts))


def table(found: dict[str, Any], forecasts: dict[str, Any]) -> str:
    """The rows as Markdown, beside what was forecast without a device."""
    lines = [
        "# Steps on an accelerator",
        "",
        "`python -m benchmarks.measured`, each row on one device. Forecast: compiled",
        "without a device for one H100 (`make targets`). Needed: what the compiler",
        "says on the device. Peak: the most that was allocated. At least: the bound of",
        "`make targets` for an H100. Kernels: launched in a step. Answers of GRPO are",
        "those of an untrained model.",
        "",
        "| step | device | forecast | needed | peak | compiled | at least | step "
        "| kernels | sequences/s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        if "error" in row:
            lines.append(f"| {name} | | | | | | | | | {row['error']} |")
            continue
        seconds = row["step_seconds"]
        rate = row["members"] * row["sequences"] / seconds
        forecast = forecasts.get(f"{name} on h100x1", {})
        bound = forecast.get("roofline_seconds")
        told = (forecast.get("device_bytes"), row["device_bytes"], row["peak_bytes"])
        cells = " | ".join(f"{n / GIB:.2f} GiB" if n else "" for n in told)
        kernels = f"{row['kernels']:,}" if "kernels" in row else ""
        lines.append(
            f"| {name} | {row['device']} | {cells} | {row['compile_seconds']:.0f} s "
            f"| {f'{bound * 1e3:.1f} ms' if bound else ''} "
            f"| {seconds * 1e3:.1f} ms | {kernels} | {rate:,.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    given = [a for a in sys.argv[1:] if a.startswith("--step=")]
    if given:
        print(json.dumps(measured(steps()[given[0].removeprefix("--step=")])))
    else:
        names = [p for a in sys.argv[1:] for p in a.removeprefix("--only=").split(",")]
        main(names)
