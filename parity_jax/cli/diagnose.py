"""Whether reinforcement has anything to amplify in a policy, and how long it takes.

parity-jax diagnose DIR [--step=N] [--member=seed=2] [--prompts=256] [--samples=16]
    [--estimator=grpo] [--generations=8] [--seed=0] [--json] [--output=OUT] [--debug]

DIR is the directory of a run. Of every prompt come the greedy answer and so many
samples at temperature 1; long ones show their work. Told are P(long), how often long
and short answers are right (with intervals of 95%), pass@k and maj@k beside those of
equal prompts, how far greedy decoding is from its threshold, the rounds of STaR until
it is long, the time of the policy gradient (updates x learning rate of the gate's
logit) of --estimator (grpo, dr_grpo, reinforce) in groups of --generations, and what
RL will do. With --output, OUT gets diagnosis.json, diagnosis.md and diagnosis.png;
else nothing is written. Exit code 0: done, 2: a bad argument, 1: a damaged directory
(one line says what), 75: stopped by a signal.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from parity_jax.analysis.diagnosis import (
    ESTIMATORS,
    Diagnosis,
    diagnose,
    draw_samples,
    shown,
)
from parity_jax.analysis.diagnosis_figure import draw_diagnosis
from parity_jax.analysis.plots import pictures_of, style
from parity_jax.analysis.snapshot import Snapshot, open_snapshot
from parity_jax.cli.arguments import reading, run_parser
from parity_jax.config import label_text, parse_label, require, unknown_value
from parity_jax.evaluate import MAX_SAMPLES
from parity_jax.experiment import MAX_SEED
from parity_jax.runs import RunDirectory
from parity_jax.runs.directory import local_path
from parity_jax.runs.files import (
    whole_directory,
    write_bytes,
    write_json,
    write_text,
)


def main(argv: Sequence[str]) -> None:
    """Diagnose what the arguments say."""
    parser = run_parser("diagnose", __doc__, "axis values; default: all members")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--samples", type=int, default=16, help="of each prompt")
    parser.add_argument("--estimator", default="grpo", help=", ".join(ESTIMATORS))
    parser.add_argument("--generations", type=int, default=8, help="of a group")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and samples")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--output", default="", help="a new directory")
    args = parser.parse_args(argv)
    require(args.prompts >= 1, "prompts", args.prompts, "must be positive")
    allowed = f"must be in [1, {MAX_SAMPLES}]"
    require(1 <= args.samples <= MAX_SAMPLES, "samples", args.samples, allowed)
    if args.estimator not in ESTIMATORS:
        raise unknown_value("estimator", args.estimator, ESTIMATORS)
    require(args.generations >= 2, "generations", args.generations, "must be >= 2")
    allowed = f"must be in [0, {MAX_SEED}]"
    require(0 <= args.seed <= MAX_SEED, "seed", args.seed, allowed)
    path, member = local_path("directory", args.directory), parse_label(args.member)
    output = local_path("output", args.output) if args.output else None
    if output:
        require(not output.exists(), "output", args.output, "must not exist yet")
    with reading():
        snapshot = open_snapshot(RunDirectory(path), args.step, member)
        found = diagnosed(snapshot, args)
        head = f"{path} at step {snapshot.step}"
        page = markdown(head, found)
        data = {"directory": str(path), "step": snapshot.step}
        data |= {"members": {label: plain(each) for label, each in found.items()}}
        if output:
            write(output, data, page, found)
    print(json.dumps(data, indent=2, allow_nan=False) if args.json else page, end="")


def diagnosed(snapshot: Snapshot, args: argparse.Namespace) -> dict[str, Diagnosis]:
    """The diagnosis of every chosen member by its label, on the same prompts."""
    task = snapshot.task
    k_prompt, k_sample = jax.random.split(jax.random.key(args.seed))
    prompt = task.sample_prompts(k_prompt, args.prompts, task.data)
    members = [snapshot.params(n) for n in range(len(snapshot.run.labels))]
    drawn = draw_samples(k_sample, task, snapshot.model, members, prompt, args.samples)
    return {
        label_text(label): diagnose(samples, args.estimator, args.generations)
        for label, samples in zip(snapshot.run.labels, drawn, strict=True)
    }


def plain(diagnosis: Diagnosis) -> dict[str, Any]:
    """As JSON has it: null for a share of no samples."""
    data = asdict(diagnosis)
    for name in ("p_long", "accuracy_long", "accuracy_short"):
        if data[name]["count"] == 0:
            data[name]["value"] = None
    return data


def markdown(head: str, found: Mapping[str, Diagnosis]) -> str:
    """One page: the verdict of every member and the numbers behind it."""
    lines = [f"# Is there anything to amplify? {head}", ""]
    for label, each in found.items():
        at = "1/2, the first token tells the kind" if each.first_token_tells else "1/3"
        rows = {
            "P(long)": f"{shown(each.p_long)}; greedy decoding turns long at {at}",
            "right if long": shown(each.accuracy_long) + length(each.length_long),
            "right if short": shown(each.accuracy_short) + length(each.length_short),
            "greedy": f"right on {each.greedy['accuracy']:.3g}, long on "
            f"{each.greedy['p_long']:.3g}, mean length {each.greedy['length']:.3g}",
        }
        for name, (measured, predicted) in each.success.items():
            rows[name] = f"{measured:.3f} ({predicted:.3f} if prompts are alike)"
        if each.star_shares:
            shares = ", ".join(f"{p:.3f}" for p in each.star_shares)
            rows["STaR"] = f"P(long) {shares}; greedy is long after {each.star_rounds}"
            rows[each.estimator] = (
                f"greedy is long after {each.flow_time:.3g} / (learning rate of the "
                "gate's logit) updates"
            )
        count = f"{each.num_prompts} prompts x {each.num_samples} samples"
        lines += [
            f"## {label} ({count})",
            "",
            f"**{each.sentence}**",
            "",
            "| | |",
            "|---|---|",
        ]
        lines += [f"| {name} | {text} |" for name, text in rows.items()] + [""]
    return "\n".join(lines)


def length(tokens: float | None) -> str:
    """The median length behind a share."""
    return "" if tokens is None else f", median length {tokens:.3g}"


def write(output: Path, data: Any, page: str, found: Mapping[str, Diagnosis]) -> None:
    """The new directory, whole or not at all."""
    with style():
        image, _ = pictures_of(draw_diagnosis(found))
    with whole_directory(output) as part:
        write_json(part / "diagnosis.json", data)
        write_text(part / "diagnosis.md", page + "\n![](diagnosis.png)\n")
        write_bytes(part / "diagnosis.png", image)
