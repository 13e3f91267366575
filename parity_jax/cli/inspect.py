"""What is in a checkpoint: lineage, config, members, parameters, responses.

parity-jax inspect DIR [--step=N] [--member=seed=2,p_cot=0.25] [--evaluate]
    [--prompts=N] [--json] [--debug]
parity-jax inspect DIR --samples=FILE [--rows=N] [--num_samples=8] [--json]

DIR is the directory of a run (runs/headline/grpo), or of an experiment or a sweep: then
its runs are told in a line each; or the folder of a Hugging Face model. --evaluate
scores the checkpoint again, on the prompts of the run's own evaluation. The first wrong
token of a response stands in brackets. Nothing is written, but --samples: FILE, a new
one, gets the greedy and the sampled answers to the test rows of a task of text, a line
of JSON each, always drawn alike, so that those of two checkpoints can be compared line
by line; what they sum up to is printed. Exit code 0: done, 2: a bad argument, 1: a
damaged directory (one line says what), 75: stopped by a signal.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.table import Table

from parity_jax.analysis.hf_folder import inspect_folder
from parity_jax.analysis.inspection import (
    inspect_experiment,
    inspect_run,
    inspect_sweep,
    sampled_rows,
)
from parity_jax.analysis.snapshot import Snapshot
from parity_jax.cli.arguments import opened, reading, run_parser
from parity_jax.cli.text import Output, assignments
from parity_jax.config import require
from parity_jax.models.huggingface import HfFolder, is_hf_folder
from parity_jax.runs import ExperimentDirectory
from parity_jax.runs.directory import is_experiment, local_path
from parity_jax.runs.files import write_text
from parity_jax.runs.progress import SHOWN
from parity_jax.runs.resolve import listed
from parity_jax.runs.sweep import SweepDirectory, is_sweep

MAX_MEMBERS = 4  # whose responses are shown
MAX_PROMPTS = 1000  # to read; --evaluate and diagnose count over more


def main(argv: Sequence[str]) -> None:
    """Inspect what the arguments say."""
    parser = run_parser("inspect", __doc__, "axis values; default: all members")
    parser.add_argument("--evaluate", action="store_true", help="score it again")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--prompts", type=int, default=2, help="sample prompts")
    parser.add_argument("--samples", default="", help="file for answers to test rows")
    parser.add_argument("--rows", type=int, help="test rows; default: all")
    parser.add_argument("--num_samples", type=int, help="of each row; default: 8")
    args = parser.parse_args(argv)
    is_few, allowed = 0 <= args.prompts <= MAX_PROMPTS, f"must be in [0, {MAX_PROMPTS}]"
    require(is_few, "prompts", args.prompts, allowed)
    of_samples, of_checkpoints = ("rows", "num_samples"), ("prompts", "evaluate")
    if args.samples:
        parser.refuse(args, "has no effect with --samples", *of_checkpoints)
    else:
        parser.refuse(args, "has no effect without --samples", *of_samples)
    for name in of_samples:
        value = getattr(args, name)
        require(value is None or value > 0, name, value, "must be positive")
    path = local_path("directory", args.directory)
    if is_sweep(path) or is_hf_folder(path) or is_experiment(path):
        only = "has an effect on the directory of one run only"
        parser.refuse(
            args, only, "step", "member", "samples", *of_checkpoints, *of_samples
        )
    with reading():
        if is_sweep(path):
            data, show = inspect_sweep(SweepDirectory(path)), show_sweep
        elif is_hf_folder(path):
            data, show = inspect_folder(HfFolder(path)), show_folder
        elif is_experiment(path):
            data, show = inspect_experiment(ExperimentDirectory(path)), show_experiment
        else:
            snapshot = opened(args)
            if args.samples:
                write_samples(snapshot, args)
                return
            data = inspect_run(snapshot, args.evaluate, args.prompts, MAX_MEMBERS)
            show = show_run
        if args.json:
            print(json.dumps(data, indent=2))
        else:
            show(Printer(), data)


def write_samples(snapshot: Snapshot, args: Any) -> None:
    """Write the answers to the test rows, and print what they sum up to."""
    file = local_path("samples", args.samples)
    allowed = "must be a new file in a folder that is there"
    is_new = file.parent.is_dir() and not file.exists()
    require(is_new, "samples", args.samples, allowed)
    rows, summaries = sampled_rows(snapshot, args.rows or 0, args.num_samples or 8)
    write_text(file, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    if args.json:
        print(json.dumps(summaries, indent=2))
        return
    names = [*next(iter(summaries.values()))]
    columns = [
        ["-" if v[name] is None else f"{v[name]:.3f}" for name in names]
        for v in summaries.values()
    ]
    table = [[*row] for row in zip(names, *columns, strict=True)]
    out = Printer()
    num = len({row["row"] for row in rows})
    out.line(f"{num} rows answered at step {snapshot.step}: {file}", "bold")
    out.table(["score", *summaries], table)


class Printer:
    """Lines and tables on standard output; what is piped is not wrapped."""

    def __init__(self) -> None:
        self.console = Output()
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
        table = Table(box=None, padding=(0, 0, 0, 2), header_style="dim")
        for name in head:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*row)
        self._print(table)

    def _print(self, table: Table) -> None:
        """Without the blanks that fill the last column."""
        with self.console.capture() as captured:
            self.console.print(table)
        for line in captured.get().splitlines():
            print(line.rstrip())


def show_sweep(out: Printer, data: dict[str, Any]) -> None:
    """Every run of every experiment in a line."""
    out.line(data["directory"], "bold")
    head = ("experiment", "run", "stage", "step", "last evaluation, median member")
    rows = [
        (name, run["name"], run["stage"], progress(run), medians(run["scores"]))
        for name, runs in data["experiments"].items()
        for run in runs
    ]
    rows += [
        (name, "", "", "not begun", "")
        for name, runs in data["experiments"].items()
        if not runs
    ]
    out.table(head, rows)


def show_experiment(out: Printer, data: dict[str, Any]) -> None:
    """Every run in a line."""
    out.line(data["directory"], "bold")
    rows = [
        (
            run["name"],
            run["stage"],
            run["parent"] or "scratch",
            progress(run),
            medians(run["scores"]),
        )
        for run in data["runs"]
    ]
    out.table(("run", "stage", "from", "step", "last evaluation, median member"), rows)


def show_folder(out: Printer, data: dict[str, Any]) -> None:
    """Family, config, special tokens; tensors that all blocks have in a line."""
    kind, model = data["model_type"], data["model"]
    out.line(f"{data['directory']}: {kind}, {data['num_parameters']:,} parameters")
    if model is None:
        out.line(f"cannot be a parent here: {data['refused']}")
    rows = {"model": assignments(model or {}), "special": assignments(data["special"])}
    rows |= {name: ", ".join(data[name]) or "none" for name in ("files", "tokenizer")}
    out.pairs(rows)
    kinds: Counter[tuple[str, str, str]] = Counter()
    for tensor in data["tensors"]:
        name = re.sub(r"\.\d+\.", ".*.", tensor["name"])
        kinds[name, " x ".join(map(str, tensor["shape"])), tensor["dtype"]] += 1
    out.head("tensors")
    out.table(
        ("name", "number", "shape", "dtype"),
        [(name, str(num), *rest) for (name, *rest), num in kinds.items()],
    )


def progress(run: dict[str, Any]) -> str:
    """How far a run is: "25/25", "10/25 unfinished", or "not started"."""
    if not run["steps"]:
        return "not started"
    done = "" if run["finished"] else " unfinished"
    return f"{run['steps'][-1]}/{run['num_steps']}{done}"


def medians(scores: Mapping[str, Any] | None) -> str:
    """The scores that a run shows while it works, of the median member."""
    parts = []
    for name, label, form in SHOWN:
        values = (scores["values"] if scores else {}).get(name, ())
        values = [v for v in values if v is not None]
        if values:
            parts.append(f"{label} {form.format(median(values))}")
    return "  ".join(parts)


def show_run(out: Printer, data: dict[str, Any]) -> None:
    """Everything about a checkpoint."""
    state = "finished" if data["finished"] else "unfinished"
    step = f"step {data['step']} of {data['num_steps']} ({state})"
    out.line(f"{data['directory']}: {data['stage']}, {step}", "bold")
    out.line(f"checkpoints at {listed(data['steps'])}")
    show_lineage(out, data["lineage"])
    show_config(out, data)
    show_members(out, data)
    show_parameters(out, data["parameters"])
    show_responses(out, data)


def show_lineage(out: Printer, lineage: Sequence[Mapping[str, Any]]) -> None:
    """The run and its ancestors: where and when they trained."""
    out.head("lineage")
    for entry in lineage:
        start = ""
        if entry["content"]:
            start = f"at step {listed(entry['step'])}, parameters {entry['content']}"
        parts = ["", entry["run"], entry.get("stage", ""), start]
        out.line("  ".join(part for n, part in enumerate(parts) if part or n == 0))
        if entry.get("imported"):
            out.line(f"      imported from {entry['imported']['path']}")
        if "process" in entry:
            process = entry["process"]
            commit = (process["commit"] or "unknown")[:10]
            versions = f"jax {process['packages']['jax']}  commit {commit}"
            out.line(f"      {process['started']}  {process['device']}  {versions}")
        for later in entry.get("continued", ()):
            when = later["process"]["started"]
            out.line(f"      {when}  continued at step {later['step']}")


def show_config(out: Printer, data: dict[str, Any]) -> None:
    """The config, and what of it differs from the parent's."""
    out.head("config")
    config = dict(data["config"])
    for name in ("parent", "eval_file"):
        if not config[name]["path"]:
            del config[name]
    out.pairs({name: assignments(part) for name, part in config.items()})
    changes = data["differs_from_parent"]
    if changes:
        out.head("config that differs from the parent's")
        out.table(
            ("field", "there", "here"), [[k, *map(str, changes[k])] for k in changes]
        )


def show_members(out: Printer, data: dict[str, Any]) -> None:
    """Scores and health of every member."""
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
    """Shapes and norms of all parameters."""
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
    """The smallest and the largest norm, or that one is not a number."""
    finite = [x for x in norms if x is not None]
    if len(finite) < len(norms):
        return "not finite"
    ends = dict.fromkeys((f"{min(finite):.4g}", f"{max(finite):.4g}"))
    return " .. ".join(ends)


def show_responses(out: Printer, data: dict[str, Any]) -> None:
    """What the first members answer to the same prompts."""
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
