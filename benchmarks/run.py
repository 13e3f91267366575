"""How the layout of a population changes its speed: `make bench`.

Median of several windows after warm-up, for one next-token chunk and one GRPO step at
d=16; the ratio is to one member alone, times the number of members: below 1 means that
members together cost less than one after the other. Writes benchmarks/results.json.
"""

import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from parity_jax.config import (
    EvaluateConfig,
    ParityConfig,
    PolicyGradientConfig,
    PopulationConfig,
    PretrainConfig,
    StageConfig,
    gpt2,
)
from parity_jax.evaluate import make_evaluate
from parity_jax.models import make_model
from parity_jax.population import Population, make_population
from parity_jax.results import write_json
from parity_jax.stages import make_stage
from parity_jax.tasks import make_task
from parity_jax.types import Hypers

LAYOUTS = {
    "sharded": PopulationConfig(vmap_width=1),
    "one after the other": PopulationConfig(num_devices=1, vmap_width=1),
    "vmap": PopulationConfig(num_devices=1, vmap_width=1_000),
}
STAGES: dict[str, tuple[StageConfig, int]] = {  # with the steps of a window
    "next-token": (PretrainConfig(batch_size=128), 10),
    "GRPO": (PolicyGradientConfig(), 2),
}
NUM_MEMBERS, NUM_WINDOWS = 4, 5


def population(cfg: PopulationConfig, stage: StageConfig, num: int) -> Population:
    """num members that differ in their seeds."""
    task = make_task(ParityConfig(num_bits=16))
    model = make_model(gpt2(depth=2, width=128), task)
    evaluate = make_evaluate(EvaluateConfig(), task, model)
    functions = make_stage(stage, task, model, evaluate)
    return make_population(cfg, functions, {"seed": tuple(range(num))}, Hypers())


def seconds_per_step(members: Population, num_steps: int) -> float:
    """Median over windows, after one window of warm-up that compiles."""
    states, windows = members.init(None), []
    for _ in range(NUM_WINDOWS + 1):
        started = time.perf_counter()
        states, metrics = members.run(states, num_steps)
        jax.block_until_ready(metrics)
        windows.append((time.perf_counter() - started) / num_steps)
    return statistics.median(windows[1:])


def main() -> None:
    """Measure all rows, print the table, write the JSON."""
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    table = Table("stage", "members", "layout", "s / step", "ratio to solo runs")
    rows: list[dict[str, Any]] = []
    for name, (stage, num_steps) in STAGES.items():
        alone = LAYOUTS["one after the other"]
        solo = seconds_per_step(population(alone, stage, 1), num_steps)
        cases = [(1, "alone", solo)]
        for layout, cfg in LAYOUTS.items():
            seconds = seconds_per_step(population(cfg, stage, NUM_MEMBERS), num_steps)
            cases.append((NUM_MEMBERS, layout, seconds))
        for num, layout, seconds in cases:
            ratio = seconds / (num * solo)
            row = {"stage": name, "members": num, "layout": layout}
            rows.append(row | {"seconds_per_step": seconds, "ratio": ratio})
            table.add_row(name, str(num), layout, f"{seconds:.3f}", f"{ratio:.2f}")
    device = jax.devices()[0]
    machine = {
        "device": f"{device.platform}: {device.device_kind} x {jax.device_count()}",
        "platform": platform.platform(),
        "jax": jax.__version__,
    }
    write_json(
        Path(__file__).parent / "results.json", {"machine": machine, "rows": rows}
    )
    Console().print(table)


if __name__ == "__main__":
    main()
