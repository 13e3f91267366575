"""The stages on text: epochs, padding, rewards of the host, exact continuation."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from small_runs import contents, digests, train, train_until
from small_texts import LLAMA, small_text, text_experiment
from tiny import random_params
from transformers import AutoModelForCausalLM, AutoTokenizer

from parity_jax.analysis import load_metrics
from parity_jax.analysis.samples import answer_given, summary
from parity_jax.cli import main
from parity_jax.config import ConfigError, RunError
from parity_jax.evaluate import EvaluateConfig, held_out_prompts, make_evaluate
from parity_jax.experiment import RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import response_logits
from parity_jax.responses import response_mask
from parity_jax.runs import resolve, run_experiment
from parity_jax.stages import PolicyGradientConfig, RolloutConfig, StarConfig
from parity_jax.tasks.text import TextConfig
from parity_jax.tasks.text.table import epoch_rows
from parity_jax.types import Data, Prompt


def test_every_epoch_has_every_row_once():
    """Also where a step is longer than an epoch, and for every member in its order."""
    for num in (1, 2, 5, 7, 12):
        rows = jax.jit(epoch_rows, static_argnums=(2, 3))
        steps = [rows(jax.random.key(3), jnp.int32(s), num, 5) for s in range(20)]
        flat = np.concatenate(steps)
        epochs = flat[: len(flat) // 5 * 5].reshape(-1, 5)
        assert (np.sort(epochs, 1) == np.arange(5)).all()
        assert len(np.unique(epochs, axis=0)) > 1
    other = epoch_rows(jax.random.key(4), jnp.int32(0), 12, 5)
    assert (other != steps[0]).any()


def test_demonstrations_against_a_slow_reference(tmp_path):
    """Token by token: prompt, response and end, the mask, and what is paid."""
    task = small_text(tmp_path).make()
    rows, tokenizer = task.splits.rows, task.tokenizer
    prompt = task.sample_prompts(jax.random.key(0), 16, task.data)
    for p_cot in (0.0, 1.0):
        hypers = Hypers(p_cot=p_cot)
        batch = task.demonstrate(jax.random.key(1), prompt, hypers, task.data)
        for b in range(16):
            row = rows[int(prompt.row[b])]
            told = prompt.token[b][prompt.mask[b]].tolist()
            assert told == tokenizer.encode([row.prompt + "\n"])[0]
            text = f"#### {row.answer}"
            text = f"{row.solution}\n{text}" if p_cot else text
            ids = [*tokenizer.encode([text])[0], *tokenizer.end_ids]
            pad = [tokenizer.pad_id] * (task.format.max_len - len(ids))
            assert batch.response[b].tolist() == ids + pad
            assert batch.mask[b].tolist() == [True] * len(ids) + [False] * len(pad)
        response_BxGxT = batch.response[:, None]
        assert bool((task.is_long(response_BxGxT) == bool(p_cot)).all())
        for reward in ("e2e", "cot"):
            value = task.rewards[reward](prompt, response_BxGxT, task.data)
            assert value.tolist() == [[1.0]] * 16
            cut = jnp.where(batch.mask, batch.response, 0).at[:, -1].set(0)
            unended = jnp.where(cut == tokenizer.end_ids[0], 0, cut)[:, None]
            value = task.rewards[reward](prompt, unended, task.data)
            assert value.tolist() == [[0.0]] * 16  # truncated


def test_the_reward_of_tokens_is_that_of_texts(tmp_path):
    """Responses that are right, run on, are cut or empty, on device and on the host."""
    task = small_text(tmp_path).make()
    host = small_text(tmp_path, verifier="exact").make()
    answer = task.splits.rows[0].answer
    texts = [
        f"a\n#### {answer}<end>",
        f"#### {answer}<end>",
        f"#### {answer}1<end>",
        f"#### {answer}<end>#### 9<end>",
        f"#### 9<end>#### {answer}<end>",
        f"#### {answer}",
        "<end>",
        f"{answer}<end>",
    ]
    tokens = [task.from_text(text)[: task.format.max_len] for text in texts]
    response = np.zeros((1, len(texts), task.format.max_len), np.int32)
    for row, token in zip(response[0], tokens, strict=True):
        row[: len(token)] = token
    prompt = Prompt(task.data.prompt[:1], None, np.array([0]))
    found = [
        t.rewards["e2e"](prompt, jnp.array(response), t.data).tolist()
        for t in (task, host)
    ]
    assert found[0] == found[1] == [[1, 1, 0, 1, 0, 0, 0, 0]]
    assert response_mask(jnp.array(response), task.format)[0, 4].sum() == len(
        task.from_text("#### 9<end>")
    )


def test_a_padded_batch_is_what_its_rows_are_alone(tmp_path):
    task = small_text(tmp_path).make()
    model = LLAMA.make(task)
    params = random_params(model)
    row_B = np.arange(2)  # of two lengths
    prompt = task.eval_prompts._replace(
        token=task.data.prompt[row_B],
        mask=np.arange(task.prompt_len)
        >= task.prompt_len - task.data.prompt_len[row_B][:, None],
    )
    assert len({*task.data.prompt_len[row_B].tolist()}) == 2
    response_BxGxT = task.data.long[row_B][:, None]
    logits_of = jax.jit(response_logits, static_argnums=0)
    together = logits_of(model, params, prompt, response_BxGxT)
    for b in row_B:
        alone = Prompt(prompt.token[b][prompt.mask[b]][None])
        logits = logits_of(model, params, alone, response_BxGxT[b][None])
        np.testing.assert_allclose(logits[0], together[b], atol=2e-5)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Fine-tuning, then GRPO with a verifier on the host."""
    folder = tmp_path_factory.mktemp("text")
    train(text_experiment(small_text(folder, verifier="gsm8k")), folder / "whole")
    return folder


def test_a_run_continues_within_an_epoch(workdir):
    """Stopped at step 2 of 4, rows 8 of 5 an epoch; then GRPO, scored on the host."""
    experiment = text_experiment(small_text(workdir, verifier="gsm8k"))
    train_until(2, experiment, workdir / "parts")
    train(experiment, workdir / "parts")
    assert contents(workdir / "parts") == contents(workdir / "whole")
    scores = load_metrics(workdir / "whole" / "grpo")
    names = {"greedy/accuracy", "t1/p_long", "t1/length_wrong", "greedy/ended"}
    assert names | {"greedy/timeout", "t1/unreadable"} <= {*scores}
    assert "greedy/first_wrong" not in scores
    trained = load_metrics(workdir / "whole" / "grpo", "train")
    assert {"unreadable", "timeout", "died"} <= {*trained}


def test_a_reward_that_fails_stops_the_run_and_its_state_is_saved(
    tmp_path, monkeypatch
):
    """In one line that names it, between records; mended, it goes on exactly."""
    monkeypatch.setenv("FAIL_WHEN", str(tmp_path / "fail"))
    name = "text_rewards:raises_later"
    rollout = RolloutConfig(2, 2, ("e2e", name), (1.0, 0.1))
    run = RunConfig(stage=PolicyGradientConfig(rollout), num_steps=6, eval_every=6)
    # with processes of its own, which start in this environment
    task = small_text(tmp_path, text_rewards=(name,), timeout_seconds=9.0)
    runs = FrozenDict({"grpo": run})
    experiment = text_experiment(task, runs=runs, axes=FrozenDict({"seed": (0,)}))
    train(experiment, tmp_path / "whole")
    asked = []

    def spoil():
        """Asked before every chunk, of 1, 2, .. steps."""
        asked.append(None)
        if len(asked) == 4:
            (tmp_path / "fail").touch()
        return False

    with pytest.raises(RunError) as error:
        run_experiment(experiment, tmp_path / "parts", quiet=True, should_stop=spoil)
    step = max(digests(tmp_path / "parts" / "grpo"))
    assert 0 < step < 6
    assert str(error.value) == f"{name}: KeyError: 'oh no'; step {step} is saved"
    (tmp_path / "fail").unlink()
    train(experiment, tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


FAILING = """
import sys
from dataclasses import replace
from pathlib import Path
from flax.core import FrozenDict
from small_texts import small_text, text_experiment
from parity_jax.experiment import RunConfig
from parity_jax.stages import PolicyGradientConfig, RolloutConfig

def get_config():
    name = "text_rewards:pays_right_ones"
    task = small_text(Path(__file__).parent, text_rewards=(name,))
    rollout = RolloutConfig(2, 2, (name,))
    run = RunConfig(stage=PolicyGradientConfig(rollout), num_steps=6)
    return text_experiment(task, runs=FrozenDict({"grpo": run}))
"""


def test_a_reward_that_fails_costs_one_line(tmp_path):
    """With members beside each other, JAX waits for the callbacks at the exit again."""
    (tmp_path / "failing.py").write_text(FAILING)
    command = [sys.executable, "-m", "parity_jax.cli", "run", "--quiet"]
    command += [f"--config={tmp_path / 'failing.py'}", f"--workdir={tmp_path / 'run'}"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    env |= {"JAX_NUM_CPU_DEVICES": "2"}
    done = subprocess.run(command, env=env, text=True, capture_output=True, check=False)
    told = "error: text_rewards:pays_right_ones: KeyError: 'wrong'; step 0 is saved\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_a_reward_that_cannot_work_is_refused_before(tmp_path):
    for name in ("raises", "nan", "nothing"):
        task = small_text(tmp_path, text_rewards=(f"text_rewards:{name}",))
        with pytest.raises(ConfigError, match=r"text_rewards='text_rewards:"):
            task.resolved()


def test_samples_of_a_checkpoint(workdir, tmp_path, capsys):
    """A line for every member and test row, drawn alike; they add up as is told."""
    run, file = str(workdir / "whole" / "sft"), tmp_path / "samples.jsonl"
    typed = ["inspect", run, f"--samples={file}", "--num_samples=3", "--json"]
    assert main.run([*typed, "--member=seed=1"]) == 0
    told = json.loads(capsys.readouterr().out)["seed=1"]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(r["member"], r["row"]) for r in rows] == [("seed=1", n) for n in range(3)]
    assert [r["gold"] for r in rows] == ["16", "18", "20"]
    answers = [a for r in rows for a in r["samples"]]
    assert len(answers) == 9
    assert told["sampled/truncated"] == np.mean([not a["ended"] for a in answers])
    assert told["sampled/length_mean"] == np.mean([a["length"] for a in answers])
    scores = load_metrics(run).isel(seed=1, step=-1)
    for name in ("accuracy", "p_long", "length_mean"):
        assert told[f"greedy/{name}"] == pytest.approx(float(scores[f"greedy/{name}"]))
    assert main.run(["inspect", run, "--prompts=1"]) == 0
    assert "wrong from" not in capsys.readouterr().out  # work may be another
    assert main.run([*typed[:2], f"--samples={tmp_path}/no/file"]) == 2
    assert "must be a new file in a folder that is there" in capsys.readouterr().err
    told = "error: rows=4: must be at most 3, the test rows\n"
    assert main.run([*typed[:2], f"--samples={file}2", "--rows=4"]) == 2
    assert capsys.readouterr().err == told
    held = file.read_text()
    assert main.run(typed) == 2 and file.read_text() == held
    assert "must be a new file" in capsys.readouterr().err
    assert main.run([*typed[:2], f"--samples={file}2"]) == 0
    assert "3 rows answered at step" in capsys.readouterr().out  # by each member


def test_a_checkpoint_of_text_outside(workdir, tmp_path, capsys, monkeypatch):
    """transformers reads its tokenizer and weights; play answers what has no row."""
    run = str(workdir / "whole" / "sft")
    out = str(tmp_path / "hf")
    assert main.run(["export_hf", run, out, "--member=seed=0"]) == 0
    task = small_text(workdir, verifier="gsm8k").make()
    theirs = AutoTokenizer.from_pretrained(out)
    text = "Ida has 7 figs.\n#### 1,204"
    assert theirs(text)["input_ids"] == task.from_text(text).tolist()
    assert theirs.decode(task.from_text(text)) == text
    assert (theirs.pad_token_id, theirs.eos_token_id) == (0, 1)
    config = AutoModelForCausalLM.from_pretrained(out).config
    assert config.vocab_size == task.vocab_size
    monkeypatch.setattr(sys, "stdin", io.StringIO("Ida has 9 figs. Twice that?\n"))
    capsys.readouterr()
    assert main.run(["play", run, "--member=seed=0"]) == 0
    assert "not judged" in capsys.readouterr().out


def test_what_samples_add_up_to():
    """By hand: two rows, three samples each."""

    def answer(text, correct=False, is_long=False, length=1):
        found = {"answer": text, "correct": correct, "is_long": is_long}
        return found | {"length": length, "ended": text is not None}

    right, wrong = answer("4", True, True, 9), answer("5")
    none = answer(None, length=20)
    rows = [
        {"greedy": right, "samples": [wrong, right, right]},
        {"greedy": none, "samples": [right, wrong, none]},
    ]
    found = summary(rows)
    expected = {
        "greedy/accuracy": 1 / 2,
        "greedy/truncated": 1 / 2,
        "greedy/length_median_wrong": 20,
        "sampled/accuracy": 3 / 6,
        "sampled/accuracy_long": 1,
        "sampled/accuracy_short": 0,
        "sampled/length_mean_wrong": 22 / 3,
        "pass@3": 1,
        "maj@3": (1 + 1 / 2) / 2,  # of the second row "4" and "5" are as frequent
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    mixed = [answer("4"), answer("4"), right, answer("5")]  # other tokens, one text
    assert summary([{"greedy": wrong, "samples": mixed}])["maj@4"] == 0
    alone = summary([{"greedy": wrong, "samples": []}])
    assert alone["greedy/length_mean_correct"] is None


def test_right_answers_are_one_however_they_are_written():
    """As math-verify has it, whose answers need no mark; a wrong one may have none."""
    cfg = TextConfig(verifier="math")
    right, wrong = {"correct": True, "ended": True}, {"correct": False, "ended": True}
    said = [("#### 0.5", right), ("it is $\\frac12$", right), ("#### 7", wrong)]
    said += [("7", wrong), ("#### 7", wrong | {"ended": False})]
    found = [answer_given(cfg, text, "1/2", seen) for text, seen in said]
    assert found == ["1/2", "1/2", "7", None, None]


def test_a_judge_that_no_run_names_is_refused(tmp_path):
    """But where nothing samples: the parent of such runs."""
    name = "text_rewards:brevity"
    task = small_text(tmp_path, text_rewards=(name,))
    whole = text_experiment(task)
    told = rf"^task\.text_rewards='{name}': must be among the stage.rollout.rewards of"
    with pytest.raises(ConfigError, match=told):
        resolve(whole)
    resolve(replace(whole, runs=FrozenDict({"sft": whole.runs["sft"]})))


def test_star_continues_with_the_reward_of_tokens(tmp_path):
    """In the middle of an epoch, from scratch."""
    stage = StarConfig(RolloutConfig(4, 2, rewards=("cot",)), batch_size=4)
    runs = {"star": RunConfig(stage=stage, num_steps=3, log_every=1, eval_every=3)}
    experiment = text_experiment(small_text(tmp_path), runs=FrozenDict(runs))
    train(experiment, tmp_path / "whole")
    train_until(1, experiment, tmp_path / "parts")
    train(experiment, tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_evaluation_in_batches_is_that_of_all_at_once(tmp_path):
    """Greedy answers draw nothing, so they are the same."""
    task = small_text(tmp_path).make()
    model = LLAMA.make(task)
    params = random_params(model)
    found = []
    for size in (0, 2):
        cfg = EvaluateConfig(3, (), batch_size=size)
        data = Data(task.data, held_out_prompts(cfg, task))
        evaluate = jax.jit(make_evaluate(cfg, task, model))
        found.append(evaluate(jax.random.key(0), params, data))
    assert found[0] == found[1]
    assert found[0]["greedy/accuracy"].count == 3
