"""Text with a real model: its chat template, its tokenizer, the smoke scale of GSM8K.

GSM8K names the folder of its files; made-up rows stand for them without it.
"""

import os

import pytest
from small_texts import gsm8k_like, write_rows
from test_smollm2 import FOLDER, QUESTIONS
from transformers import AutoTokenizer

from parity_jax.analysis.claims import read_claims
from parity_jax.cli import main
from parity_jax.tasks.text.tokenizer import from_folder


def test_prompts_of_a_chat_are_those_of_transformers():
    theirs, ours = AutoTokenizer.from_pretrained(FOLDER), from_folder(str(FOLDER))
    assert ours.end_ids == (2,)
    assert ours.pad_id != 2  # which the model pads with
    for question in QUESTIONS:
        message = [{"role": "user", "content": question}]
        text = theirs.apply_chat_template(
            message, add_generation_prompt=True, tokenize=False
        )
        assert ours.chat(question) == text
        assert ours.begun(ours.encode([text])[0]) == theirs(text)["input_ids"]


@pytest.fixture
def rows(tmp_path):
    """Where the rows are."""
    named = os.environ.get("GSM8K")
    if named:
        return named
    for split in ("train", "test"):
        write_rows(tmp_path / f"{split}.jsonl", gsm8k_like() * 4)
    return str(tmp_path)


def test_the_smoke_scale_of_gsm8k(rows, tmp_path, monkeypatch, capsys):
    """Every line of it: folder, tokenizer, both stages, verifier, claims, figure."""
    monkeypatch.setenv("GSM8K", rows)
    monkeypatch.setenv("SMOLLM2", str(FOLDER))
    workdir = tmp_path / "gsm8k"
    typed = ["run", "--config=experiments/gsm8k.py", f"--workdir={workdir}"]
    assert main.run([*typed, "--quiet", "--debug"]) == 0, capsys.readouterr().err
    (claim,) = read_claims(workdir / "claims.json")
    assert claim["holds"]
    assert (workdir / "figure.png").stat().st_size > 1000
