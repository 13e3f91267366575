"""Diagnoses of policies whose odds are known, and the command on a run."""

import json
from dataclasses import asdict, replace

import jax
import numpy as np
import pytest
from flax.core import FrozenDict
from scipy.special import logit
from scipy.stats import binomtest
from small_texts import gsm8k_like, tiny_folder, write_rows
from small_worlds import SURE, Heads, make_heads
from tiny import tiny_experiment

from parity_jax import theory
from parity_jax.analysis import load_metrics
from parity_jax.analysis.diagnosis import diagnose, draw_samples, share_of
from parity_jax.analysis.kinds import kinds_of_length
from parity_jax.cli.diagnose import markdown
from parity_jax.cli.main import run
from parity_jax.runs import run_experiment
from parity_jax.tasks import ParityConfig

TASK = ParityConfig(8).make()


def mixture(p, **changes):
    """The ideal policy of D(p)."""
    A, C = (1 + p) / 2, 2 * p / (1 + p)
    heads = Heads(first=logit(A), gate_right=logit(C) if p else -SURE)
    return heads._replace(**changes)


@pytest.fixture(scope="module")
def found():
    """By name the diagnosis of a policy."""
    policies = {
        "rare": mixture(0.1),
        "frequent": mixture(0.5),
        "none": mixture(0.0),
        "blind": mixture(0.25, chain=0.0),
        "half": mixture(0.25, chain=logit(0.95)),
    }
    prompt = TASK.sample_prompts(jax.random.key(1), 512, ())
    drawn = draw_samples(
        jax.random.key(2), TASK, make_heads(TASK), [*policies.values()], prompt, 16
    )
    return {
        name: diagnose(samples, "reinforce", 8)
        for name, samples in zip(policies, drawn, strict=True)
    }


def test_verdicts(found):
    verdicts = {name: each.verdict for name, each in found.items()}
    assert verdicts == {
        "rare": "solve",
        "frequent": "long",
        "none": "nothing",
        "blind": "nothing",
        "half": "lengthen",
    }
    assert "none of 8192 samples" in found["none"].sentence
    assert not found["none"].star_shares and found["none"].flow_time is None
    assert found["none"].threshold is found["none"].first_token_tells is None
    page = markdown("x", {"none": found["none"]})
    assert "| right if long | no sample |" in page and "nan" not in page
    assert "turns long at a share that samples of one kind do not tell |" in page


def test_numbers_are_the_theorys(found):
    rare = found["rare"]
    assert rare.p_long.low < 0.1 < rare.p_long.high
    assert rare.accuracy_long.value == pytest.approx(rare.accuracy_long.high) == 1
    assert rare.accuracy_short.low < 0.5 < rare.accuracy_short.high
    assert (rare.length_long, rare.length_short) == (8, 1)
    assert rare.greedy["p_long"] == 0 and rare.threshold == 1 / 3
    measured = {name: both[0] for name, both in rare.success.items()}
    assert measured["pass@4"] == pytest.approx(theory.pass_at_k(0.1, 4), abs=0.02)
    assert measured["maj@8"] == pytest.approx(theory.majority_at_k(0.1, 8), abs=0.05)
    for value, predicted in rare.success.values():
        assert value == pytest.approx(predicted, abs=0.05)
    assert rare.star_rounds == theory.star_rounds(0.1)
    expected = theory.pg_flow_time(rare.p_long.value, 1 - rare.accuracy_short.value)
    assert rare.flow_time == pytest.approx(expected)
    half = found["half"].accuracy_long.value
    assert half == pytest.approx((1 + 0.9**7) / 2, abs=0.04)


def test_a_share_is_in_its_interval():
    """Also where rounding would leave it outside: its error bar would be negative."""
    for n in range(1, 300):
        for right in (0, 1):
            found = share_of(np.full(n, right), np.ones(n))
            assert 0 <= found.low <= found.value <= found.high <= 1


def test_intervals_count_what_is_independent():
    rng = np.random.default_rng(0)
    right_BxK = rng.random((400, 4)) < 0.3
    number_B, count_B = right_BxK.sum(1), np.full(400, 4)
    alone = share_of(number_B, count_B)
    oracle = binomtest(int(number_B.sum()), 1600).proportion_ci(method="wilson")
    assert (alone.low, alone.high) == pytest.approx((oracle.low, oracle.high), abs=4e-3)
    same = share_of(4 * right_BxK[:, 0], count_B)  # a prompt's samples are all alike
    oracle = binomtest(int(right_BxK[:, 0].sum()), 400).proportion_ci(method="wilson")
    assert (same.low, same.high) == pytest.approx((oracle.low, oracle.high), abs=1e-3)
    never = share_of(np.zeros(400), count_B)
    assert never.value == never.low == 0 and 0 < never.high < 0.01
    assert np.isnan(share_of(np.zeros(3), np.zeros(3)).value)


def test_the_command(tmp_path, capsys):
    run_experiment(tiny_experiment(), tmp_path / "run", quiet=True)
    target = str(tmp_path / "run" / "grpo")
    few = ["--prompts=8", "--samples=2"]
    assert run(["diagnose", target, *few, "--json", f"--output={tmp_path}/out"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [*data["members"]] == ["seed=0", "seed=1"] and data["step"] == 2
    assert data["members"]["seed=1"]["num_samples"] == 2
    assert json.loads((tmp_path / "out" / "diagnosis.json").read_text()) == data
    assert (tmp_path / "out" / "diagnosis.png").read_bytes()[1:4] == b"PNG"
    for idle in ("data=x", "adapter=gsm8k", "verifier=math", "form=chat"):
        assert run(["diagnose", target, *few, f"--{idle}"]) == 2
        assert "is for the folder of a Hugging Face" in capsys.readouterr().err
    assert run(["diagnose", target, *few, "--member=seed=1"]) == 0
    page = capsys.readouterr().out
    sentence = data["members"]["seed=1"]["sentence"]
    assert f"**{sentence}**" in page and "seed=0" not in page
    assert (
        page.replace(" at step", "")
        and sentence in (tmp_path / "out" / "diagnosis.md").read_text()
    )


def test_members_that_diverged_are_told(tmp_path, capsys):
    """By whatever opens their checkpoint; they have no scores."""
    axes = FrozenDict({"learning_rate": (1e-3, 1e30), "seed": (0,)})
    experiment = tiny_experiment(axes=axes)
    runs = FrozenDict({"pretrain": experiment.runs["pretrain"]})
    run_experiment(replace(experiment, runs=runs), tmp_path / "run", quiet=True)
    capsys.readouterr()
    target, bad = str(tmp_path / "run" / "pretrain"), "--member=learning_rate=1e30"
    few, out = ["--prompts=8", "--samples=2"], str(tmp_path / "hf")
    told = "warning: member learning_rate=1e+30,seed=0 diverged; it is as it was after"
    for command in (["diagnose", target, *few], ["export_hf", target, out, bad]):
        assert run(command) == 0
        assert told in capsys.readouterr().err
    assert run(["diagnose", target, *few, "--member=learning_rate=1e-3"]) == 0
    assert capsys.readouterr().err == ""
    scores = load_metrics(target)["greedy/accuracy"].isel(step=-1)
    assert np.isnan(scores.values.ravel()).tolist() == [False, True]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--prompts=0", "prompts=0: must be in [1, "),
        ("--prompts=99999999999", "prompts=99999999999: must be in [1, "),
        ("--generations=1000000000000", "generations=1000000000000: must be in [2, "),
        ("--samples=0", "samples=0: must be in [1, 1024]"),
        ("--estimator=ppo", "estimator='ppo'"),
        ("--generations=1", "generations=1: must be in [2, "),
        ("--seed=-1", "seed=-1"),
        ("--output=/", "output='/': must not exist yet"),
        ("--output=/proc/x", "output='/proc/x': cannot be written: "),
    ],
)
def test_bad_arguments(tmp_path, capsys, flag, words):
    assert run(["diagnose", str(tmp_path), flag]) == 2
    assert words in capsys.readouterr().err


def test_nothing_is_lost_as_json(found):
    for each in found.values():
        assert asdict(each)["verdict"] == each.verdict


def test_kinds_by_length_are_those_that_made_them():
    rng = np.random.default_rng(1)
    is_long = rng.random((200, 8)) < 0.2
    length = np.where(
        is_long, rng.lognormal(4.5, 0.3, is_long.shape), rng.lognormal(1, 0.3)
    )
    found = kinds_of_length(length.astype(int))
    assert (found.is_long == is_long).mean() > 0.99 and found.doubt < 0.01
    alike = kinds_of_length(rng.lognormal(4, 0.4, (200, 8)))
    assert not alike.is_long.any() and alike.evidence < 0
    assert not kinds_of_length(np.full((5, 4), 7)).is_long.any()


@pytest.mark.parametrize("num", [5, 20])
def test_longer_answers_are_of_the_longer_kind(num):
    """The wider of two kinds has both tails, but all long ones are at one end."""
    rng = np.random.default_rng(0)
    short, long = rng.integers(19, 22, 600), rng.lognormal(np.log(150), 0.4, 200)
    length = np.concatenate([short, long.astype(int), rng.integers(2, 10, num)])
    found = kinds_of_length(length)
    assert not found.is_long[length < 22].any() and found.is_long[length > 60].all()
    assert length[found.is_long].min() > length[~found.is_long].max()


def test_a_model_of_a_folder_on_questions_of_a_file(tmp_path, capsys):
    """The answers of a random model are wrong and go on for ever."""
    folder = str(tiny_folder(tmp_path / "model"))
    file = write_rows(tmp_path / "rows.jsonl", gsm8k_like())
    given = [f"--data={file}", "--adapter=gsm8k", "--verifier=gsm8k"]
    few = ["--prompts=4", "--samples=2", "--max_response=40", "--kinds=length"]
    assert run(["diagnose", folder, *given, *few, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    (found,) = data["members"].values()
    assert found["num_prompts"] == 4 and found["greedy"]["accuracy"] == 0
    assert found["verdict"] == "long" and found["greedy"]["length"] == 40
    assert found["doubt"] is not None and data["step"] is None
    assert data["num_dropped"] == 0
    rows = gsm8k_like()
    rows[2] |= {"answer": rows[2]["answer"].replace("#### ", "#### about ")}
    odd = write_rows(tmp_path / "odd.jsonl", rows)
    typed = ["diagnose", folder, f"--data={odd}", *given[1:], *few]
    assert run([*typed, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_dropped"] == 1
    assert run(typed) == 0
    assert "Rows of the file that are left out: 1; they are" in capsys.readouterr().out
    config = tmp_path / "model" / "config.json"
    whole = config.read_text()
    config.write_text(whole.replace('"vocab_size": 300', '"vocab_size": 200'))
    assert run(["diagnose", folder, *given, *few]) == 2
    assert "model.vocab_size=200: must be 0 or at least" in capsys.readouterr().err
    config.write_text(whole)
    assert run(["diagnose", folder, *few]) == 2
    assert "data='': must name a file of questions" in capsys.readouterr().err
    assert run(["diagnose", folder, f"--data={tmp_path}/none.jsonl", *few]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert run(["diagnose", folder, *given, "--verifier=judge"]) == 2
    assert "verifier='judge'" in capsys.readouterr().err
    for idle in ("--step=0", "--member=seed=0"):
        assert run(["diagnose", folder, *given, idle]) == 2
        assert "is for the directory of a run" in capsys.readouterr().err
    for idle in ("--step=0", "--member=seed=0", "--evaluate", "--samples=x"):
        assert run(["inspect", folder, idle]) == 2
        assert "on the directory of one run only" in capsys.readouterr().err
