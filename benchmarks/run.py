"""Speed against plain PyTorch, as ratios within one run: `make bench`.

Windows of ours and of the baseline take turns after a warm-up of each; every figure is
the median of its windows. Rollouts and GRPO need responses of known length, which no
untrained model gives: there the logits of both sides are those of a table with
P(long) = p_long, and the work of the model is all done. Writes results.json.
"""

import importlib.util
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch
from rich.console import Console

from benchmarks import baseline
from benchmarks.programs import (
    BATCH,
    DEPTH,
    GROUP,
    P_COT,
    WIDTH,
    Window,
    length_table,
    population,
    products,
    steps_of,
    torch_model,
)
from parity_jax.cli.devices import set_up_jax
from parity_jax.cli.run import configured
from parity_jax.population import Population
from parity_jax.runs import make_program, resolve
from parity_jax.runs.files import write_json
from parity_jax.stages import (
    PolicyGradientConfig,
    PretrainConfig,
    RolloutConfig,
    StarConfig,
)

HEADLINE = Path(__file__).parents[1] / "experiments" / "headline.py"
NUM_WINDOWS, WINDOW_SECONDS = 5, 0.7
NUM_STEPS = 5  # of next-token prediction in a call; runs have 10 or more
# Members of populations, and their steps in a call
SIZES = ((2, NUM_STEPS), (4, NUM_STEPS), (8, NUM_STEPS), (64, 1), (256, 1))


def seconds(cases: dict[str, Window], num_windows: int = NUM_WINDOWS) -> dict:
    """Median seconds of each piece of work; windows of the cases take turns."""
    repeats, windows = {}, {name: [] for name in cases}
    for name, work in cases.items():
        work()  # compiles
        started = time.perf_counter()
        work()
        once = time.perf_counter() - started
        repeats[name] = max(1, round(WINDOW_SECONDS / once))
    for _ in range(num_windows):
        for name, work in cases.items():
            started = time.perf_counter()
            for _ in range(repeats[name]):
                work()
            windows[name].append((time.perf_counter() - started) / repeats[name])
    return {name: statistics.median(values) for name, values in windows.items()}


class Bench:
    """Rows as they are measured."""

    def __init__(self, num_windows: int = NUM_WINDOWS):
        self.rows: list[dict[str, Any]] = []
        self.num_windows = num_windows

    def measure(self, name: str, unit: str, cases: dict[str, tuple[int, Window]]):
        """A row per case; a case is how many units its piece of work is, and it.

        Baselines are called "torch..."; ours are compared with the fastest of them.
        """
        each = seconds({k: work for k, (_, work) in cases.items()}, self.num_windows)
        rows = rows_of(name, unit, {k: num for k, (num, _) in cases.items()}, each)
        self.rows += rows
        for row in rows:
            Console().print(row)


def rows_of(
    name: str, unit: str, num_units: dict[str, int], each: dict[str, float]
) -> list[dict[str, Any]]:
    """Rates of the cases, from their units and seconds, and ratios to the baseline."""
    rate = {case: num / each[case] for case, num in num_units.items()}
    best = max((r for case, r in rate.items() if case.startswith("torch")), default=0)
    rows: list[dict[str, Any]] = []
    for case, per_second in rate.items():
        row = {"row": name, "case": case, "unit": unit, "per_second": per_second}
        if best and not case.startswith("torch"):
            row["ratio"] = per_second / best
        rows.append(row)
    return rows


def members_of(num: int) -> str:
    """The name of a case."""
    return f"{num} member{'s' * (num > 1)}"


def next_token(bench: Bench, num_bits: int, depth: int = DEPTH) -> None:
    """Next-token steps; a compiled baseline too where a compiler is at hand."""
    batch, cfg = BATCH[num_bits][0], PretrainConfig(batch_size=BATCH[num_bits][0])
    cases: dict[str, tuple[int, Window]] = {
        members_of(num): (
            num * batch * NUM_STEPS,
            steps_of(population(cfg, num_bits, num, depth=depth), NUM_STEPS),
        )
        for num in (1, 2)
    }
    for name, wrap in (("torch", lambda m: m), ("torch compiled", torch.compile)):
        model, optimizer = torch_model(num_bits, depth)
        model = wrap(model)

        def step(model: Any = model, optimizer: Any = optimizer) -> None:
            prompt = baseline.prompts(batch, num_bits)
            response = baseline.demonstrations(prompt, P_COT)
            baseline.next_token_step(model, optimizer, prompt, response)

        cases[name] = batch, step
    deeper = f", depth {depth}" * (depth != DEPTH)
    what = f"next-token step, d={num_bits}, batch {batch}{deeper}"
    bench.measure(what, "sequences", cases)


def rollouts(bench: Bench, num_bits: int, p_long: float) -> None:
    """Sampling G responses to each prompt, and GRPO steps on such responses."""
    num_prompts = BATCH[num_bits][1]
    table = length_table(num_bits, p_long)
    torch_gpt, optimizer = torch_model(num_bits)
    torch_prompt = baseline.prompts(num_prompts, num_bits)
    torch_table = torch.tensor(table)
    num = num_prompts * GROUP
    where = f"d={num_bits}, {num_prompts} x {GROUP}, P(long) {p_long:g}"
    cfg = PolicyGradientConfig(RolloutConfig(num_prompts, GROUP), loss_type="dapo")

    def ours(only_samples: bool) -> dict[str, tuple[int, Window]]:
        return {
            members_of(n): (
                n * num,
                steps_of(population(cfg, num_bits, n, table, only_samples)),
            )
            for n in (1, 2)
        }

    cases = ours(only_samples=True)
    cases["torch"] = (
        num,
        lambda: baseline.sample(torch_gpt, torch_prompt, GROUP, torch_table),
    )
    bench.measure(f"rollouts, {where}", "responses", cases)
    cases = ours(only_samples=False)
    cases["torch"] = (
        num,
        lambda: baseline.grpo_step(
            torch_gpt, optimizer, torch_prompt, GROUP, torch_table
        ),
    )
    bench.measure(f"GRPO step, {where}", "responses", cases)


def trl(bench: Bench, num_bits: int = 16) -> None:
    """TRL's GRPO step on as many responses, where TRL is installed."""
    if importlib.util.find_spec("trl") is None:
        return
    from benchmarks import trl_row  # noqa: PLC0415

    num_prompts = BATCH[num_bits][1]
    each = trl_row.seconds_per_step(num_bits, num_prompts, GROUP, DEPTH, WIDTH, 6)
    rate = num_prompts * GROUP / statistics.median(each)
    what = f"GRPO step, d={num_bits}, {num_prompts} x {GROUP}, P(long) {P_COT:g}"
    ours = next(r for r in bench.rows if (r["row"], r["case"]) == (what, "1 member"))
    row = {"row": what, "case": "TRL (pip install trl)", "unit": "responses"}
    bench.rows.append(
        row | {"per_second": rate, "ratio_of_1_member": ours["per_second"] / rate}
    )


def without_baseline(bench: Bench) -> None:
    """A STaR round, evaluation, greedy responses, GRPO on products of 3 digits."""
    table, rollout = length_table(16, P_COT), RolloutConfig(64, GROUP)

    def of(num_units: int, members: Callable[[int], Population]) -> Any:
        return {members_of(n): (n * num_units, steps_of(members(n))) for n in (1, 2)}

    star = StarConfig(RolloutConfig(num_prompts=512, num_generations=1))
    cases = of(512, lambda n: population(star, 16, n, table))
    bench.measure("STaR round, d=16, 512 samples", "samples", cases)
    greedy = PolicyGradientConfig(rollout)
    cases = of(
        64 * GROUP, lambda n: population(greedy, 16, n, table, True, temperature=0.0)
    )
    bench.measure("greedy responses, d=16, 64 x 8, short", "responses", cases)
    cases = of(32 * GROUP, products)
    bench.measure("GRPO step, 3x3 digits, 32 x 8, untrained", "responses", cases)
    cases = {}
    for num in (1, 2):
        members = population(star, 16, num, table)
        scores = partial(members.scores, members.init(None))
        cases[members_of(num)] = num * 1024, partial(waited_for, scores)
    bench.measure("evaluation, d=16, 256 prompts x 4", "responses", cases)


def waited_for(work: Callable[[], Any]) -> None:
    """Do it all."""
    jax.block_until_ready(work())


def populations(bench: Bench) -> None:
    """Members of one program against as many solo runs one after the other."""
    cfg = PretrainConfig(batch_size=128)
    cases = {
        members_of(num): (
            num * 128 * num_steps,
            steps_of(population(cfg, 16, num), num_steps),
        )
        for num, num_steps in SIZES
    }
    vmap = population(cfg, 16, 4, num_devices=1, vmap_width=4)
    cases["4 members by vmap"] = (4 * 128 * NUM_STEPS, steps_of(vmap, NUM_STEPS))
    solo = population(cfg, 16, 1)
    cases["1 member"] = (128 * NUM_STEPS, steps_of(solo, NUM_STEPS))
    bench.measure("population, next-token, d=16", "sequences", cases)
    rows = bench.rows[-len(cases) :]
    for row in rows:  # time of the members over that of solo runs
        row["over_solo"] = rows[-1]["per_second"] / row["per_second"]


def compile_headline(cache: str) -> dict[str, float]:
    """In a process of its own: seconds to compile the headline, and peak memory."""
    set_up(cache)
    _, experiment = configured(str(HEADLINE), [])
    total = 0.0
    for run in resolve(experiment).values():
        members = make_program(run)
        states, metrics = members.init(None), members.no_metrics()
        started = time.perf_counter()
        members.run.compiled(states, metrics, 1, members.data)
        members.evaluate.compiled(states, members.data)
        total += time.perf_counter() - started
        jax.block_until_ready(members.advance(states, metrics, 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"compile_seconds": total, "peak_bytes": peak}


def compile_times(bench: Bench) -> None:
    """The headline's programs, without and with a cache of compiled ones."""
    with tempfile.TemporaryDirectory() as cache:
        for case in ("cold", "warm"):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                row = pool.submit(compile_headline, cache).result()
            bench.rows.append({"row": "headline programs", "case": case} | row)
            Console().print(bench.rows[-1])


def resume_times(bench: Bench) -> None:
    """Seconds of a command that continues the headline by a step, from its start."""
    command = [sys.executable, "-m", "parity_jax.cli", "run", f"--config={HEADLINE}"]
    with tempfile.TemporaryDirectory() as place:
        command += [f"--workdir={place}/run", "--only=pretrain", "--quiet"]
        command += ["--config.runs.pretrain.eval_every=1000"]
        command += ["--config.runs.grpo.parent_step=-1"]
        for num_steps, cache in enumerate(("first", "own", "own"), 1):
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{place}/{cache}"}
            started = time.perf_counter()
            steps = f"--config.runs.pretrain.num_steps={num_steps}"
            subprocess.run([*command, steps], env=environment, check=True)
            elapsed = time.perf_counter() - started
            if num_steps > 1:
                case = "cold" if num_steps == 2 else "warm"
                row = {"row": "continue the headline by a step", "case": case}
                bench.rows.append(row | {"seconds": elapsed})
                Console().print(bench.rows[-1])


def set_up(cache: str = "") -> None:
    """JAX as in a run, with a cache of its own or none."""
    set_up_jax()
    jax.config.update("jax_compilation_cache_dir", cache or None)
    torch.manual_seed(0)


def matmul_rate() -> dict[str, float]:
    """GFLOP/s of matrix products of the model's sizes, both libraries."""
    shape, flops = (4096, WIDTH), 2 * 4096 * WIDTH * 4 * WIDTH
    x, w = jnp.ones(shape), jnp.ones((WIDTH, 4 * WIDTH))
    a, b = torch.ones(shape), torch.ones(WIDTH, 4 * WIDTH)
    product = jax.jit(jnp.matmul)
    cases = {
        "jax": lambda: jax.block_until_ready(product(x, w)),
        "torch": lambda: torch.matmul(a, b),
    }
    return {name: flops / s / 1e9 for name, s in seconds(cases).items()}


def flops_per_sequence(num_bits: int, positions: float) -> float:
    """6 x weights of the blocks x positions: the products of a next-token step."""
    return 6 * DEPTH * 12 * WIDTH**2 * positions * (num_bits + 1)


def achieved(rows: list[dict[str, Any]]) -> None:
    """Add the GFLOP/s of next-token rows, of the least work that the loss needs."""
    for row in rows:
        if row["row"].startswith("next-token"):
            num_bits = int(row["row"].split("d=")[1].split(",")[0])
            needed = flops_per_sequence(num_bits, 1 + P_COT)
            row["gflops"] = needed * row["per_second"] / 1e9


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the README."""
    lines = ["| what | case | per second | ratio |", "|---|---|---|---|"]
    for row in rows:
        if "per_second" in row:
            ratio = f"{row['ratio']:.2f}" if "ratio" in row else ""
            if "over_solo" in row:
                ratio = f"{row['over_solo']:.2f} x the time of solo runs"
            if "ratio_of_1_member" in row:
                ratio = f"1 member is {row['ratio_of_1_member']:.1f} times as fast"
            rate = f"{row['per_second']:.0f} {row['unit']}"
        elif "seconds" in row:
            rate, ratio = f"{row['seconds']:.0f} s", ""
        else:
            rate = f"{row['compile_seconds']:.0f} s to compile"
            ratio = f"peak {row['peak_bytes'] / 2**30:.1f} GiB"
        lines.append(f"| {row['row']} | {row['case']} | {rate} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all rows, print the table, write the JSON."""
    started = time.perf_counter()
    set_up()
    bench = Bench()
    compile_times(bench)
    rate = matmul_rate()
    for num_bits in BATCH:
        next_token(bench, num_bits)
        rollouts(bench, num_bits, P_COT)
    rollouts(bench, 16, 1.0)  # as after reinforcement
    next_token(bench, 16, depth=8)
    without_baseline(bench)
    resume_times(bench)
    populations(bench)
    trl(bench)
    achieved(bench.rows)
    device = jax.devices()[0]
    machine = {
        "device": f"{device.platform}: {device.device_kind} x {jax.device_count()}",
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "matmul_gflops": rate,
        "jax": jax.__version__,
        "torch": torch.__version__,
        "minutes": (time.perf_counter() - started) / 60,
    }
    path = Path(__file__).parent / "results.json"
    write_json(path, {"machine": machine, "rows": bench.rows})
    Console().print(machine)
    print(markdown(bench.rows))


if __name__ == "__main__":
    main()
