"""A real model: SmolLM2-135M-Instruct against `transformers`; `make test-pretrained`.

Its folder is that of convert.py, in SMOLLM2 (default .pretrained/smollm2).
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from parity_jax.decode import sample
from parity_jax.models import response_logits
from parity_jax.models.huggingface import HfFolder
from parity_jax.models.transformer import make_transformer
from parity_jax.responses import left_padded
from parity_jax.tasks import ParityConfig
from parity_jax.types import Prompt, ResponseFormat

FOLDER = Path(os.environ.get("SMOLLM2", ".pretrained/smollm2")).absolute()
NUM_TOKENS = 64
QUESTIONS = [
    "What is 17 + 25?",
    "Name three colours.",
    "A coin shows heads. Ann flips it twice. Does it show heads?",
    "Write one sentence about the sea.",
    "Is 91 a prime number? Answer yes or no, then say why.",
    "List the days of the week.",
    "Tom has 3 boxes of 4 apples and eats 5. How many apples are left?",
    "What is the capital of France?",
    "Count from 1 to 20.",
    "Explain what a parity bit is to a child.",
]
FORMAT = ResponseFormat(pad_id=0, end_ids=(2,), max_len=NUM_TOKENS, short_len=8)


@pytest.fixture(scope="module")
def ours():
    """The model with scanned blocks, and its parameters."""
    folder, task = HfFolder(FOLDER), ParityConfig(4).make()
    cfg = folder.model(task, scan=True)
    model = make_transformer(cfg, cfg.vocab_size, max_len=0)
    template = jax.eval_shape(model.init, jax.random.key(0))
    return model, folder.load(cfg, template)


@pytest.fixture(scope="module")
def theirs():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)


@pytest.fixture(scope="module")
def prompts():
    """Token ids of the questions in the chat template."""
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for text in QUESTIONS
    ]
    return [np.array(tokenizer(text)["input_ids"], np.int32) for text in texts]


def test_logits_and_64_greedy_tokens_of_ten_prompts(ours, theirs, prompts):
    """All ten in one left-padded batch here, one by one there."""
    model, params = ours
    batch = left_padded(prompts, FORMAT)
    assert batch.mask is not None and not np.all(batch.mask)
    batch = Prompt(*map(jnp.asarray, batch[:2]))

    @jax.jit
    def greedy(params, prompt):
        return sample(
            jax.random.key(0), model, params, prompt, jnp.zeros(1), FORMAT
        ).token

    answer_Bx1xT = greedy(params, batch)
    logits = jax.jit(partial(response_logits, model))(params, batch, answer_Bx1xT)
    answer_BxT, logits_BxTxV = np.asarray(answer_Bx1xT[:, 0]), np.asarray(logits[:, 0])
    num_ended = 0
    for b, prompt_L in enumerate(prompts):
        with torch.no_grad():
            found = theirs.generate(
                torch.tensor(prompt_L)[None].long(),
                do_sample=False,
                max_new_tokens=NUM_TOKENS,
                pad_token_id=0,
                repetition_penalty=1.0,
            )[0, len(prompt_L) :].numpy()
            whole = np.concatenate([prompt_L, found])
            expected = theirs(torch.tensor(whole)[None].long()).logits[0].numpy()
        np.testing.assert_array_equal(answer_BxT[b, : len(found)], found)
        assert (answer_BxT[b, len(found) :] == FORMAT.pad_id).all()
        num_ended += len(found) < NUM_TOKENS
        expected_TxV = expected[len(prompt_L) - 1 : -1]
        difference = np.abs(logits_BxTxV[b, : len(found)] - expected_TxV).max()
        assert difference < 5e-4  # of logits up to some 40
        assert np.abs(expected_TxV).max() > 10
    assert 0 < num_ended < len(prompts)  # some end by themselves, some do not


def test_from_the_folder_to_a_run_and_back(tmp_path):
    """The README's commands; weights that have not trained are the same bytes."""
    experiment = Path(__file__).parents[1] / "outside" / "hf_experiment.py"

    def type_in(*words):
        command = [sys.executable, "-m", "parity_jax.cli", *map(str, words)]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    tiny = ["--config.runs.sft.num_steps=1", "--config.runs.sft.stage.batch_size=4"]
    tiny += ["--config.evaluate.num_prompts=2", "--config.evaluate.temperatures=()"]
    tiny += ["--config.population.num_devices=1"]
    command = ["run", f"--config={experiment}:{FOLDER}", "--workdir=runs/from_hf"]
    type_in(*command, "--only=sft", *tiny)
    told = type_in("inspect", "runs/from_hf/sft", "--prompts=0", "--step=0")
    assert f"imported from {FOLDER.resolve()}" in told
    export = ["export_hf", "runs/from_hf/sft", "back", "--member=seed=0"]
    type_in(*export, "--step=0")
    there = load_file(FOLDER / "model.safetensors")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert there.keys() == back.keys()
    for name, tensor in there.items():
        np.testing.assert_array_equal(tensor, back[name])
    copied = (tmp_path / "back" / "tokenizer.json").read_bytes()
    assert copied == (FOLDER / "tokenizer.json").read_bytes()
    assert "llama, 134,515,008 parameters" in type_in("inspect", FOLDER)
    AutoModelForCausalLM.from_pretrained(tmp_path / "back")
