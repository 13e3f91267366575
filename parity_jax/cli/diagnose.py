"""Whether reinforcement has anything to amplify in a policy, and how long it takes.

parity-jax diagnose MODEL [--step=N] [--member=seed=2] [--prompts=256] [--samples=16]
    [--estimator=grpo] [--generations=8] [--seed=0] [--kinds=task] [--json]
    [--output=OUT] [--debug]
parity-jax diagnose HF_DIR --data=FILE [--adapter=plain] [--verifier=exact]
    [--form=plain] [--max_response=0] ..

MODEL is the directory of a run, or the folder of a Hugging Face model: then FILE has
the questions (--adapter: plain, gsm8k, math), --form is how they are put (plain, chat),
--verifier says what is right (exact, gsm8k, math) and --max_response how many tokens an
answer may have (0: those of the longest solution); rows that are longer, or whose
answer the verifier cannot read, are left out and counted. Of every prompt come the
greedy answer and so many samples at temperature 1; long ones show their work, as the
task has it, or with --kinds=length are the longer of two kinds. Told are P(long), how
often long and short answers are right (with intervals of 95%), pass@k and maj@k beside
those of equal prompts, how far greedy decoding is from its threshold, the rounds of
STaR until it is long, the time of the policy gradient (updates x learning rate of the
gate's logit) of --estimator (grpo, dr_grpo, reinforce) in groups of --generations, and
what RL will do. With --output, OUT gets diagnosis.json, diagnosis.md and diagnosis.png;
else nothing is written. Exit code 0: done, 2: a bad argument, 1: a damaged directory
(one line says what), 75: stopped by a signal.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax

from parity_jax.analysis.diagnosis import (
    ESTIMATORS,
    Diagnosis,
    diagnose,
    draw_samples,
    percent,
    shown,
)
from parity_jax.analysis.diagnosis_figure import draw_diagnosis
from parity_jax.analysis.plots import pictures_of, style
from parity_jax.cli.arguments import opened, reading, run_parser
from parity_jax.config import MAX_SIZE, label_text, require, unknown_value
from parity_jax.evaluate import MAX_SAMPLES
from parity_jax.experiment import MAX_SEED
from parity_jax.models import Model
from parity_jax.models.huggingface import HfFolder, is_hf_folder
from parity_jax.runs.directory import local_path, new_path
from parity_jax.runs.files import (
    whole_directory,
    write_bytes,
    write_json,
    write_text,
)
from parity_jax.tasks import FiniteTask, Task, TextConfig
from parity_jax.tasks.text import FileSource, TemplateConfig, TokenizerConfig
from parity_jax.tasks.text.rows import Adapter
from parity_jax.tasks.text.templates import Form
from parity_jax.tasks.text.verify import Verifier
from parity_jax.types import Params

CHOICES = {"adapter": Adapter, "verifier": Verifier, "form": Form}  # of an HF folder
AT = {  # of P(long), by whether the first token of a response tells its kind
    True: "1/2, the first token tells the kind",
    False: "1/3",
    None: "a share that samples of one kind do not tell",
}
MAX_GENERATIONS = 2**20  # of a group whose gain is summed
KINDS = ("task", "length")  # how long answers are told from short ones


def main(argv: Sequence[str]) -> None:
    """Diagnose what the arguments say."""
    parser = run_parser("diagnose", __doc__, "axis values; default: all members")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--samples", type=int, default=16, help="of each prompt")
    parser.add_argument("--estimator", default="grpo", help=", ".join(ESTIMATORS))
    parser.add_argument("--generations", type=int, default=8, help="of a group")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and samples")
    parser.add_argument("--kinds", default="task", help=", ".join(KINDS))
    parser.add_argument("--data", default="", help="questions, for an HF folder")
    parser.add_argument("--adapter", default="plain", help="of the questions")
    parser.add_argument("--verifier", default="exact", help="of the answers")
    parser.add_argument("--form", default="plain", help="of the prompts")
    parser.add_argument("--max_response", type=int, default=0, help="tokens")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--output", default="", help="a new directory")
    args = parser.parse_args(argv)
    allowed = f"must be in [1, {MAX_SIZE}]"
    require(1 <= args.prompts <= MAX_SIZE, "prompts", args.prompts, allowed)
    allowed = f"must be in [1, {MAX_SAMPLES}]"
    require(1 <= args.samples <= MAX_SAMPLES, "samples", args.samples, allowed)
    if args.estimator not in ESTIMATORS:
        raise unknown_value("estimator", args.estimator, ESTIMATORS)
    if args.kinds not in KINDS:
        raise unknown_value("kinds", args.kinds, KINDS)
    allowed, num = f"must be in [2, {MAX_GENERATIONS}]", args.generations
    require(2 <= num <= MAX_GENERATIONS, "generations", num, allowed)
    allowed = f"must be in [0, {MAX_SEED}]"
    require(0 <= args.seed <= MAX_SEED, "seed", args.seed, allowed)
    path = local_path("directory", args.directory)
    is_folder = is_hf_folder(path)
    if is_folder:
        parser.refuse(args, "is for the directory of a run", "step", "member")
    else:
        allowed = "is for the folder of a Hugging Face model; a run has its own"
        parser.refuse(args, allowed, "data", *CHOICES, "max_response")
    output = new_path("output", args.output) if args.output else None
    with reading():
        subject = of_folder(path, args) if is_folder else of_run(args)
        found = diagnosed(subject, args)
        page = markdown(subject.name, found, subject.num_dropped)
        members = {label: plain(each) for label, each in found.items()}
        data = {"directory": str(path), "step": subject.step, "members": members}
        data["num_dropped"] = subject.num_dropped
        if output:
            write(output, data, page, found)
    print(json.dumps(data, indent=2, allow_nan=False) if args.json else page, end="")


class Subject(NamedTuple):
    """What is diagnosed: members of a run, or a model."""

    name: str
    step: int | None
    task: Task
    model: Model
    members: dict[str, Params]  # by label
    num_dropped: int | None = None  # questions of a file that are left out


def of_run(args: argparse.Namespace) -> Subject:
    """The chosen members of a run at a step, on its own task."""
    snapshot = opened(args)
    labels = map(label_text, snapshot.run.labels)
    members = {label: snapshot.params(n) for n, label in enumerate(labels)}
    name = f"{snapshot.directory.path} at step {snapshot.step}"
    return Subject(name, snapshot.step, snapshot.task, snapshot.model, members)


def of_folder(path: Path, args: argparse.Namespace) -> Subject:
    """A Hugging Face model on the questions of a file."""
    require(bool(args.data), "data", "", "must name a file of questions")
    for name, choice in CHOICES.items():
        if getattr(args, name) not in get_args(choice):
            raise unknown_value(name, getattr(args, name), get_args(choice))
    task_cfg = TextConfig(
        FileSource(args.data, args.data, adapter=args.adapter),
        TokenizerConfig(folder=str(path)),
        TemplateConfig(form=args.form),
        verifier=args.verifier,
        max_response=args.max_response,
        bad_rows="drop",
    ).resolved()
    task, folder = task_cfg.make(), HfFolder(path)
    config = folder.model(task, scan=True)
    config.check(task_cfg)
    model = config.make(task)
    params = folder.load(config, jax.eval_shape(model.init, jax.random.key(0)))
    assert task_cfg.content is not None  # it is resolved
    num_dropped = task_cfg.content.num_dropped // 2  # the file is both splits
    return Subject(str(path), None, task, model, {path.name: params}, num_dropped)


def diagnosed(subject: Subject, args: argparse.Namespace) -> dict[str, Diagnosis]:
    """The diagnosis of every member by its label, on the same prompts."""
    task, num = subject.task, args.prompts
    k_prompt, k_sample = jax.random.split(jax.random.key(args.seed))
    if isinstance(task, FiniteTask):
        there = task.eval_prompts.token.shape[0]
        chosen = jax.random.permutation(k_prompt, there)[:num]
        prompt = jax.tree.map(lambda x: x[chosen], task.eval_prompts)
    else:
        prompt = task.sample_prompts(k_prompt, num, task.data)
    members = [*subject.members.values()]
    drawn = draw_samples(k_sample, task, subject.model, members, prompt, args.samples)
    by_length = args.kinds == "length"
    return {
        label: diagnose(samples, args.estimator, args.generations, by_length)
        for label, samples in zip(subject.members, drawn, strict=True)
    }


def plain(diagnosis: Diagnosis) -> dict[str, Any]:
    """As JSON has it: null for a share of no samples."""
    data = asdict(diagnosis)
    for name in ("p_long", "accuracy_long", "accuracy_short"):
        if data[name]["count"] == 0:
            data[name]["value"] = None
    return data


def markdown(
    head: str, found: Mapping[str, Diagnosis], num_dropped: int | None = None
) -> str:
    """One page: the verdict of every member and the numbers behind it."""
    lines = [f"# Is there anything to amplify? {head}", ""]
    if num_dropped:
        why = "they are too long, or have an answer that the verifier cannot read"
        lines += [f"Rows of the file that are left out: {num_dropped}; {why}.", ""]
    for label, each in found.items():
        at = AT[each.first_token_tells]
        rows = {
            "P(long)": f"{shown(each.p_long)}; greedy decoding turns long at {at}",
            "kinds": "as the task has them"
            if each.doubt is None
            else f"by length; {each.doubt:.1%} of the samples may be of the other",
            "right if long": shown(each.accuracy_long) + length(each.length_long),
            "right if short": shown(each.accuracy_short) + length(each.length_short),
            "greedy": f"right on {percent(each.greedy['accuracy'])}, "
            f"long on {percent(each.greedy['p_long'])}, "
            f"mean length {each.greedy['length']:.3g}",
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
