"""What is in a checkpoint: lineage, config, members, parameters, responses.

python -m experiments.inspect DIR [--step=N] [--member=seed=2,p_cot=0.25] [--json]

DIR is the directory of a stage (runs/headline/grpo), or of an experiment: then its
stages are told in a line each. --evaluate scores the checkpoint again, on the prompts
of the run's own evaluation. The first wrong token of a response stands in brackets.
Nothing is written. Exit code 0: done, 2: a bad argument, 1: a damaged directory (one
line says what).
"""

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.arguments import run, run_parser
from parity_jax.config import require
from parity_jax.inspection import inspect_experiment, inspect_run
from parity_jax.progress import SHOWN
from parity_jax.snapshot import open_run, parse_member, read_config

MAX_MEMBERS = 4  # whose responses are shown
MAX_STEPS = 12  # that are listed one by one


def main(argv: Sequence[str]) -> None:
    """Inspect what the arguments say."""
    parser = run_parser(__doc__, "axis values; default: all members")
    parser.add_argument("--evaluate", action="store_true", help="score it again")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--prompts", type=int, default=2, help="sample prompts")
    args = parser.parse_args(argv)
    require(args.prompts >= 0, "prompts", args.prompts, "must be 0 (none) or positive")
    if "runs" in read_config(args.directory):
        data, show = inspect_experiment(args.directory), show_experiment
    else:
        snapshot = open_run(args.directory, args.step, parse_member(args.member))
        data = inspect_run(snapshot, args.evaluate, args.prompts, MAX_MEMBERS)
        show = show_run
    if args.json:
        print(json.dumps(data, indent=2))
    else:
        show(Printer(), data)


class Printer:
    """Lines and tables on standard output; what is piped is not wrapped."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False)
        if not self.console.is_terminal:
            self.console.width = 100

    def line(self, text: str = "", style: str | None = None) -> None:
        self.console.print(text, style=style, soft_wrap=True)

    def pairs(self, rows: Mapping[str, str]) -> None:
        """Names and long texts that wrap beside them."""
        table = Table(box=None, padding=(0, 0, 0, 2), show_header=False)
        for name, text in rows.items():
            table.add_row(name, text)
        self._print(table)

    def head(self, text: str) -> None:
        self.line()
        self.line(text, "bold")

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(*head, box=None, padding=(0, 0, 0, 2), header_style="dim")
        for row in rows:
            table.add_row(*row)
        self._print(table)

    def _print(self, table: Table) -> None:
        """Without the blanks that fill the last column."""
        with self.console.capture() as captured:
            self.console.print(table)
        for line in captured.get().splitlines():
            print(line.rstrip())


def show_experiment(out: Printer, data: dict[str, Any]) -> None:
    out.line(data["directory"], "bold")
    rows = [
        (
            stage["name"],
            stage["stage"],
            stage["parent"] or "scratch",
            progress(stage),
            medians(stage["scores"]),
        )
        for stage in data["stages"]
    ]
    out.table(("run", "stage", "from", "step", "last evaluation, median member"), rows)


def progress(stage: dict[str, Any]) -> str:
    """How far a run is: "25/25", "10/25 unfinished", or "not started"."""
    if not stage["steps"]:
        return "not started"
    done = "" if stage["finished"] else " unfinished"
    return f"{stage['steps'][-1]}/{stage['num_steps']}{done}"


def medians(record: Mapping[str, Any] | None) -> str:
    parts = []
    for name, label, form in SHOWN:
        values = (record["values"] if record else {}).get(name, ())
        values = [v for v in values if v is not None]
        if values:
            parts.append(f"{label} {form.format(median(values))}")
    return "  ".join(parts)


def show_run(out: Printer, data: dict[str, Any]) -> None:
    state = "finished" if data["finished"] else "unfinished"
    step = f"step {data['step']} of {data['num_steps']} ({state})"
    out.line(f"{data['directory']}: {data['stage']}, {step}", "bold")
    out.line(f"checkpoints at {listed(data['steps'])}")
    show_lineage(out, data["lineage"])
    show_config(out, data)
    show_members(out, data)
    show_parameters(out, data["parameters"])
    show_responses(out, data)


def listed(steps: Sequence[int]) -> str:
    """Steps one by one, or the ends of a long list."""
    if len(steps) <= MAX_STEPS:
        return ", ".join(map(str, steps))
    ends = [", ".join(map(str, part)) for part in (steps[:3], steps[-3:])]
    return f"{ends[0]}, .., {ends[1]} ({len(steps)} steps)"


def show_lineage(out: Printer, lineage: Sequence[Mapping[str, Any]]) -> None:
    out.head("lineage")
    for entry in lineage:
        start = f"at step {entry['step']}, parameters {entry['content']}"
        parts = [entry.get("stage", ""), start if entry["content"] else ""]
        out.line("  ".join(["", entry["run"], *filter(None, parts)]))
        if "imported" in entry:
            out.line(f"      imported from {entry['imported']['from']}")
        if "packages" in entry:
            commit = (entry["commit"] or "unknown")[:10]
            versions = f"jax {entry['packages']['jax']}  commit {commit}"
            out.line(f"      {entry['started']}  {entry['device']}  {versions}")
        for later in entry.get("continued", ()):
            out.line(f"      {later['started']}  continued at step {later['step']}")


def show_config(out: Printer, data: dict[str, Any]) -> None:
    out.head("config")
    shared = {k: v for k, v in data["config"].items() if k != "run" and v != ""}
    run = dict(data["config"]["run"])
    parts = shared | {"stage": run.pop("stage"), "hypers": run.pop("hypers")}
    out.pairs({k: assignments(v) for k, v in (parts | {"run": run}).items()})
    changes = data["differs_from_parent"]
    if changes:
        out.head("config that differs from the parent's")
        out.table(
            ("field", "there", "here"), [[k, *map(str, changes[k])] for k in changes]
        )


def assignments(part: Any) -> str:
    """A dict as "a=1 b(c=2)"."""
    if not isinstance(part, dict):
        return str(part)
    words = []
    for name, value in part.items():
        nested = isinstance(value, dict) and value
        words.append(f"{name}({assignments(value)})" if nested else f"{name}={value}")
    return " ".join(words)


def show_members(out: Printer, data: dict[str, Any]) -> None:
    scores = data["scores"]
    source = f"scores {scores['source']} at step {scores['step']}" if scores else ""
    out.head(f"members ({source or 'not evaluated yet'})")
    values = scores["values"] if scores else {}
    shown = [(name, label, form) for name, label, form in SHOWN if name in values]
    rows = []
    for i, member in enumerate(data["members"]):
        numbers = [
            "-" if values[name][i] is None else form.format(values[name][i])
            for name, _, form in shown
        ]
        bad = member["non_finite"]
        health = f"{len(bad)} not finite: {', '.join(bad)}" if bad else "all finite"
        state = [str(member["step"]), member["status"], health]
        rows.append([member["member"], *numbers, *state])
    labels = [label for _, label, _ in shown]
    out.table(["member", *labels, "step", "status", "numbers"], rows)


def show_parameters(out: Printer, parameters: Sequence[Mapping[str, Any]]) -> None:
    total = sum(p["size"] for p in parameters)
    out.head(f"parameters ({total:,} in each member; norm from smallest to largest)")
    rows = [
        (
            p["path"],
            " x ".join(map(str, p["shape"])) or "scalar",
            p["dtype"],
            norm_range(p["norm"]),
        )
        for p in parameters
    ]
    out.table(("path", "shape", "dtype", "norm"), rows)


def norm_range(norms: Sequence[float | None]) -> str:
    finite = [x for x in norms if x is not None]
    if len(finite) < len(norms):
        return "not finite"
    ends = dict.fromkeys((f"{min(finite):.4g}", f"{max(finite):.4g}"))
    return " .. ".join(ends)


def show_responses(out: Printer, data: dict[str, Any]) -> None:
    num, most = len(data["members"]), MAX_MEMBERS
    of = f" (first {most} of {num} members)" if num > most else ""
    out.head(f"responses, [first wrong token]{of}")
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for response in data["responses"]:
        by_prompt.setdefault(response["prompt"], []).append(response)
    width = max((len(r["member"]) for r in data["responses"]), default=0)
    for prompt, answers in by_prompt.items():
        out.line(f"  {prompt}")
        for answer in answers:
            who = f"{answer['member']:{width}}  {answer['decoding']:7}"
            out.line(f"    {who}  {answer['marked']}  {answer['verdict']}")


if __name__ == "__main__":
    run(main)
