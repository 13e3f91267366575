"""MATH: fine-tuning on mostly short answers, then GRPO, by math-verify (T1 - T4).

Command    parity-jax run --config=experiments/competition_math.py
               --workdir=runs/competition_math
           (the scale `smoke`; --config.scale as in gsm8k.py takes a GPU)
Device     smoke: 2 CPU cores; the others: one H100 (1B) or 8, never run
Expected   smoke runs every line and claims nothing. The others: T1 - T4 as for parity,
           below p_cot = 1/2: short answers begin with ####, where their kind shows.
Figure     ours: accuracy and length of both stages

MATH names the folder of train.parquet and test.parquet, or of train.jsonl and
test.jsonl (fields problem and solution), else data/math: nothing of it comes along. The
models are found as in gsm8k.py. All sizes are ours.
"""

from pathlib import Path

import gsm8k
import matplotlib.pyplot as plt
from lab import choose
from lab_text import path_of, text_figure

from parity_jax.analysis import Claim, Results
from parity_jax.experiment import Experiment
from parity_jax.tasks.text import FileSource


def get_config(scale: str = "smoke") -> Experiment:
    size, data = choose(gsm8k.SCALES, scale), path_of("MATH", "data/math")
    is_parquet = Path(data, "train.parquet").is_file()
    kind = "parquet" if is_parquet else "jsonl"
    source = FileSource(f"{data}/train.{kind}", f"{data}/test.{kind}", adapter="math")
    return gsm8k.text_experiment(size, source, "math")


def claims(results: Results) -> list[Claim]:
    """T1 - T4, as of GSM8K."""
    return gsm8k.claims(results)


def figure(results: Results) -> plt.Figure:
    """Accuracy and length of both stages."""
    return text_figure(results, {"sft": "fine-tuning", "grpo": "GRPO"})
