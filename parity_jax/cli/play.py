"""Type a prompt, see what a member of a run answers, token by token.

python -m experiments.play DIR [--step=N] [--member=seed=0] [--temperature=1] [--seed=0]

Prompts are read from standard input, one a line, as the task writes them (parity:
`+-++`; the closing "=" may be left out). The answers are the greedy one and one sampled
at the temperature; probabilities are those of the policy at that temperature, and the
alternatives are the likeliest other tokens. The first wrong token stands in brackets.
"""

import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.console import Console
from rich.table import Table

from experiments.arguments import run, run_parser
from parity_jax.answers import DECODINGS, Answers, describe_answer, make_answer
from parity_jax.config import require
from parity_jax.snapshot import member_text, open_run, parse_member
from parity_jax.tasks import vocabulary
from parity_jax.types import Task

MIN_PROBABILITY = 0.0005  # of an alternative that is shown
NUM_ALTERNATIVES = 2


def main(argv: Sequence[str]) -> None:
    """Answer every line of standard input."""
    parser = run_parser(__doc__, "axis values; default: the first member")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the sampled answers")
    args = parser.parse_args(argv)
    allowed = "must be positive"
    require(args.temperature > 0, "temperature", args.temperature, allowed)
    snapshot = open_run(args.directory, args.step, parse_member(args.member))
    task, params, answer = snapshot.task, snapshot.params(0), make_answer(snapshot)
    example_L = task.sample_prompts(jax.random.key(0), 1)[0]
    end = task.to_text(example_L[-1:])  # the same for all prompts
    console = Console(highlight=False, markup=False)
    console.print(
        f"{args.directory} step {snapshot.step}, {member_text(snapshot.labels[0])}; "
        f"a prompt is like {task.to_text(example_L)}"
    )
    for n, line in enumerate(sys.stdin):
        try:
            prompt_1xL = read_prompt(task, line.strip(), end)
        except ValueError as error:
            console.print(f"error: {error}", soft_wrap=True)
            continue
        key = jax.random.fold_in(jax.random.key(args.seed), n)
        answers = answer(key, params, prompt_1xL, jnp.float32(args.temperature))
        show(console, task, answers, args.temperature)


def read_prompt(task: Task, text: str, end: str) -> Array:
    """The tokens of a typed prompt, 1xL; ValueError says what is wrong with it."""
    return task.read_prompt(text if end in text else text + end)[None]


def show(console: Console, task: Task, answers: Answers, temperature: float) -> None:
    """Both answers as lines, then their tokens side by side."""
    table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
    table.add_column("token", justify="right")
    columns = []
    for g, decoding in enumerate(DECODINGS):
        answer = describe_answer(task, answers, 0, g)
        name = decoding if decoding == "greedy" else f"{decoding} at {temperature:g}"
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
    cells, words = [], vocabulary(task)
    for t in range(min(int(answers.length[0, g]) + 1, answers.token.shape[-1])):
        chosen = int(answers.token[0, g, t])
        probability_V = np.asarray(answers.probability[0, g, t])
        others = [v for v in np.argsort(-probability_V) if v != chosen]
        likely = [v for v in others if probability_V[v] >= MIN_PROBABILITY]
        parts = [
            f"{words[v]} {probability_V[v]:.3f}"
            for v in (chosen, *likely[:NUM_ALTERNATIVES])
        ]
        cells.append(parts[0] + f"  ({', '.join(parts[1:])})" * (len(parts) > 1))
    return cells


if __name__ == "__main__":
    run(main)
