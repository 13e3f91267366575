"""Type a prompt, see what a member of a run answers, token by token.

parity-jax play DIR [--step=N] [--member=seed=0] [--temperature=1] [--top_k=0]
    [--top_p=1] [--seed=0] [--debug]

Prompts are read from standard input, one a line, as the task writes them (parity:
`+-++`; the closing "=" may be left out). The answers are the greedy one and one sampled
at the temperature, from the top_k likeliest tokens (0: all) and of these from the
fewest that hold top_p of the mass. Probabilities are those of the policy at that
temperature before tokens are left out, and the alternatives are the likeliest other
tokens. The first wrong token stands in brackets.
Nothing is written. Exit code 0: done, 2: a bad argument, 1: a damaged directory (one
line says what), 75: stopped by a signal.
"""

import argparse
import io
import math
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from parity_jax.analysis.answers import (
    DECODINGS,
    Answers,
    describe_answer,
    make_answer,
    prompt_text,
)
from parity_jax.analysis.snapshot import Snapshot
from parity_jax.cli.arguments import opened, reading, run_parser
from parity_jax.cli.text import Output
from parity_jax.config import (
    label_text,
    number_text,
    require,
    require_float32,
)
from parity_jax.evaluate import MIN_TEMPERATURE
from parity_jax.experiment import MAX_SEED
from parity_jax.tasks import Task
from parity_jax.tasks.task import typed_prompt
from parity_jax.types import Prompt

MIN_PROBABILITY = 0.0005  # of an alternative that is shown
NUM_ALTERNATIVES = 2
NUM_EXAMPLES = 32  # of prompts, to see how they end


def main(argv: Sequence[str]) -> None:
    """Answer every line of standard input."""
    parser = run_parser("play", __doc__, "axis values; default: the first member")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top_k", type=int, default=0, help="0: all tokens")
    parser.add_argument("--top_p", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the sampled answers")
    args = parser.parse_args(argv)
    allowed = f"must be finite and >= {MIN_TEMPERATURE:g}"
    is_right = MIN_TEMPERATURE <= args.temperature < math.inf
    require(is_right, "temperature", args.temperature, allowed)
    require_float32("temperature", args.temperature, MIN_TEMPERATURE)
    allowed = "must be 0 (all tokens) or positive"
    require(args.top_k >= 0, "top_k", args.top_k, allowed)
    require(0 < args.top_p <= 1, "top_p", args.top_p, "must be in (0, 1]")
    require_float32("top_p", args.top_p, high=1.0)
    allowed = f"must be in [0, {MAX_SEED}]"
    require(0 <= args.seed <= MAX_SEED, "seed", args.seed, allowed)
    require(sys.stdin is not None, "stdin", None, "is closed; prompts are read from it")
    if isinstance(sys.stdin, io.TextIOWrapper):  # any bytes are a wrong prompt at most
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")
    with reading():
        play(opened(args), args)


def play(snapshot: Snapshot, args: argparse.Namespace) -> None:
    """Answer every line of standard input by the first of these members."""
    temperature = args.temperature
    task, params = snapshot.task, snapshot.params(0)
    answer = make_answer(task, snapshot.model, args.top_k, args.top_p)
    examples = task.sample_prompts(jax.random.key(0), NUM_EXAMPLES, task.data)
    console = Output()
    console.print(
        f"{snapshot.directory.path} step {snapshot.step}, "
        f"{label_text(snapshot.run.labels[0])}; "
        f"a prompt is like {prompt_text(task, examples, 0)}",
        soft_wrap=True,
    )
    for n, line in enumerate(sys.stdin):
        try:
            token_L = typed_prompt(task, line.strip())
        except ValueError as error:
            console.print(f"error: {error}", soft_wrap=True)
            continue
        prompt = Prompt(jnp.array(token_L)[None])
        key = jax.random.fold_in(jax.random.key(args.seed), n)
        show(console, task, answer(key, params, prompt, temperature), temperature)


def show(console: Output, task: Task, answers: Answers, temperature: float) -> None:
    """Both answers as lines, then their tokens side by side."""
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
    table.add_column("token", justify="right")
    columns = []
    for g, decoding in enumerate(DECODINGS):
        answer = describe_answer(task, answers, 0, g)
        name = f"{decoding} at {number_text(temperature)}" if g > 0 else decoding
        line = f"  {name:14} {answer['marked']}  {answer['verdict']}"
        console.print(line, soft_wrap=True)
        table.add_column(name)
        columns.append(token_cells(task, answers, g))
    for n in range(max(map(len, columns))):
        cells = [column[n] if n < len(column) else "" for column in columns]
        table.add_row(str(n + 1), *cells)
    console.print(table)


def token_cells(task: Task, answers: Answers, g: int) -> list[str]:
    """For every token of an answer: itself, its probability, what else was likely."""
    cells = []
    for t in range(min(int(answers.length[0, g]) + 1, answers.token.shape[-1])):
        chosen = int(answers.token[0, g, t])
        probability_V = np.asarray(answers.probability[0, g, t])
        others = [v for v in np.argsort(-probability_V) if v != chosen]
        likely = [v for v in others if probability_V[v] >= MIN_PROBABILITY]
        parts = [
            f"{task.to_text(np.array([v])).strip()} {probability_V[v]:.3f}"
            for v in (chosen, *likely[:NUM_ALTERNATIVES])
        ]
        cells.append(parts[0] + f"  ({', '.join(parts[1:])})" * (len(parts) > 1))
    return cells
