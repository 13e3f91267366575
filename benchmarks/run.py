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
import numpy as np
import torch
from rich.console import Console

from benchmarks import baseline
from experiments import headline
from parity_jax.config import (
    EvaluateConfig,
    Experiment,
    ParityConfig,
    PolicyGradientConfig,
    PopulationConfig,
    PretrainConfig,
    RolloutConfig,
    StageConfig,
    StarConfig,
    from_dict,
    gpt2,
)
from parity_jax.decode import sample
from parity_jax.evaluate import make_evaluate
from parity_jax.masked import Mean, Metrics
from parity_jax.models import Model, make_model
from parity_jax.population import Population, make_population
from parity_jax.results import write_json
from parity_jax.runs import build
from parity_jax.stages import make_stage
from parity_jax.stages.stage import StepKeys
from parity_jax.tasks import make_task
from parity_jax.types import Hypers, StageState, Task

Window = Callable[[], None]  # a piece of work, waited for
DEPTH, WIDTH, P_COT, GROUP = 2, 128, 0.25, 8
BATCH = {16: (128, 64), 50: (64, 32)}  # num_bits: demonstrations, prompts of a rollout
NUM_WINDOWS, WINDOW_SECONDS = 7, 0.7
NUM_STEPS = 5  # of next-token prediction in a call; runs have 10 or more
NEVER = -60.0  # logit of a token that does not come


def length_table(num_bits: int, p_long: float) -> np.ndarray:
    """TxV logits: short answers and full chains of random bits, long with p_long."""
    table = np.full((num_bits + 1, 5), NEVER, np.float32)
    table[:, baseline.PLUS :] = 0
    with np.errstate(divide="ignore"):
        go_on = np.maximum(np.log(p_long / 2), NEVER)
        stop = np.maximum(np.log(1 - p_long), NEVER)
    table[1, baseline.PLUS :], table[1, baseline.EOS] = go_on, stop
    table[-1, baseline.PLUS :], table[-1, baseline.EOS] = NEVER, 0
    return table


def steered(model: Model, table: np.ndarray) -> Model:
    """The model with the logits of a table; its work is all done."""
    table_TxV = jnp.array(table)

    def prompt_pass(params: Any, prompt_BxL: Any) -> Any:
        logits, context = model.prompt_pass(params, prompt_BxL)
        return 1e-20 * logits + table_TxV[:1], context

    def response_pass(params: Any, token: Any, context: Any) -> Any:
        logits = model.response_pass(params, token, context)
        return 1e-20 * logits + table_TxV[None, None, 1 : 1 + token.shape[-1]]

    def decode_step(params: Any, token: Any, index: Any, *rest: Any) -> Any:
        logits, cache = model.decode_step(params, token, index, *rest)
        return 1e-20 * logits + table_TxV[index + 1][None, None], cache

    return Model(model.init, prompt_pass, response_pass, model.empty_cache, decode_step)


def population(
    stage: StageConfig,
    num_bits: int,
    num: int,
    table: np.ndarray | None = None,
    only_samples: bool = False,
    **layout: int,
) -> Population:
    """num members that differ in their seeds; steps may only draw their responses."""
    task = make_task(ParityConfig(num_bits))
    model = make_model(gpt2(DEPTH, WIDTH), task)
    model = model if table is None else steered(model, table)
    evaluate = make_evaluate(EvaluateConfig(num_prompts=256), task, model)
    functions = make_stage(stage, task, model, evaluate)
    if only_samples:
        functions = functions._replace(step=partial(draw, stage.rollout, task, model))
    axes = {"seed": tuple(range(num))}
    return make_population(
        PopulationConfig(**layout), functions, axes, Hypers(p_cot=P_COT)
    )


def draw(
    cfg: RolloutConfig, task: Task, model: Model, state: StageState
) -> tuple[StageState, Metrics]:
    """A step that samples the responses of a rollout and learns nothing."""
    k_prompt, k_sample = jax.random.split(StepKeys.of(state).data)
    prompt_BxL = task.sample_prompts(k_prompt, cfg.num_prompts)
    temperature_G = jnp.ones(cfg.num_generations)
    lengths = (task.response_len, task.short_len)
    response = sample(
        k_sample, model, state.params, prompt_BxL, temperature_G, *lengths
    )
    state = state._replace(step=state.step + 1)
    return state, {"loss": Mean.over(response.log_prob)}


def steps_of(members: Population, num_steps: int = 1) -> Window:
    """Steps of all members, in one call as between two records of a run."""
    states = [members.init(None)]

    def window() -> None:
        states[0], metrics = members.run(states[0], num_steps)
        jax.block_until_ready(metrics)

    return window


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
        rate = {k: num / each[k] for k, (num, _) in cases.items()}
        best = max((r for k, r in rate.items() if k.startswith("torch")), default=None)
        for case in cases:
            row = {"row": name, "case": case, "unit": unit, "per_second": rate[case]}
            if best and not case.startswith("torch"):
                row["ratio"] = rate[case] / best
            self.rows.append(row)
            Console().print(row)


def members_of(num: int) -> str:
    """The name of a case."""
    return f"{num} member{'s' * (num > 1)}"


def torch_model(num_bits: int) -> tuple[Any, Any]:
    """A fresh baseline model and its optimizer."""
    model = baseline.Gpt(DEPTH, WIDTH, 5, 2 * num_bits + 2)
    return model, baseline.make_optimizer(model)


def next_token(bench: Bench, num_bits: int) -> None:
    """Next-token steps; a compiled baseline too where a compiler is at hand."""
    batch, cfg = BATCH[num_bits][0], PretrainConfig(batch_size=BATCH[num_bits][0])
    cases: dict[str, tuple[int, Window]] = {
        members_of(num): (
            num * batch * NUM_STEPS,
            steps_of(population(cfg, num_bits, num), NUM_STEPS),
        )
        for num in (1, 2)
    }
    for name, wrap in (("torch", lambda m: m), ("torch compiled", torch.compile)):
        model, optimizer = torch_model(num_bits)
        model = wrap(model)

        def step(model: Any = model, optimizer: Any = optimizer) -> None:
            prompt = baseline.prompts(batch, num_bits)
            response = baseline.demonstrations(prompt, P_COT)
            baseline.next_token_step(model, optimizer, prompt, response)

        cases[name] = batch, step
    bench.measure(f"next-token step, d={num_bits}, batch {batch}", "sequences", cases)


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


def star_and_evaluation(bench: Bench) -> None:
    """Rows without a baseline: a STaR round, and greedy plus three temperatures."""
    table = length_table(16, P_COT)
    star = StarConfig(RolloutConfig(num_prompts=512, num_generations=1))
    members = population(star, 16, 2, table)
    bench.measure(
        "STaR round, d=16, 512 samples",
        "samples",
        {"2 members": (2 * 512, steps_of(members))},
    )
    states = members.init(None)
    bench.measure(
        "evaluation, d=16, 256 prompts x 4",
        "responses",
        {
            "2 members": (
                2 * 1024,
                lambda: jax.block_until_ready(members.evaluate(states)),
            )
        },
    )


def populations(bench: Bench) -> None:
    """Members of one program against as many solo runs one after the other."""
    cfg = PretrainConfig(batch_size=128)
    cases = {
        members_of(num): (
            num * 128 * NUM_STEPS,
            steps_of(population(cfg, 16, num), NUM_STEPS),
        )
        for num in (2, 4, 8)
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
    experiment = from_dict(Experiment, headline.get_config().to_dict())
    total = 0.0
    for name in experiment.runs:
        members = build(experiment, name)
        states = members.init(None)
        started = time.perf_counter()
        step = members.run.lower(states, 1).compile()
        members.evaluate.lower(states).compile()
        total += time.perf_counter() - started
        jax.block_until_ready(step(states, 1))
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


def set_up(cache: str = "") -> None:
    """One device per core, as experiments.main does."""
    jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
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
    star_and_evaluation(bench)
    populations(bench)
    trl(bench)
    achieved(bench.rows)
    device = jax.devices()[0]
    machine = {
        "device": f"{device.platform}: {device.device_kind} x {jax.device_count()}",
        "platform": platform.platform(),
        "cores": os.cpu_count(),
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
