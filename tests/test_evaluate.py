"""Scores of responses with known answers, on fresh and on given prompts."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_worlds import as_they_are, make_table
from tiny import tiny_gpt2

from parity_jax.config import ConfigError
from parity_jax.evaluate import (
    EvaluateConfig,
    make_evaluate,
    means,
    read_prompts,
    score,
    success_tables,
)
from parity_jax.models import Model
from parity_jax.tasks import Parity, ParityConfig
from parity_jax.tasks.parity import EOS, PLUS
from parity_jax.types import Data, Prompt

TASK = ParityConfig(3).make()


def test_success_tables_count_all_subsets():
    """Against the mean over every choice of k of 5 samples."""
    tables = success_tables(5)
    assert set(tables) == {"pass@2", "maj@2", "pass@4", "maj@4"}
    for k in (2, 4):
        for num_right in range(6):
            right = [1] * num_right + [0] * (5 - num_right)
            counts = np.array([sum(chosen) for chosen in combinations(right, k)])
            majority = np.mean((2 * counts > k) + (2 * counts == k) / 2)
            assert tables[f"pass@{k}"][num_right] == pytest.approx(np.mean(counts > 0))
            assert tables[f"maj@{k}"][num_right] == pytest.approx(majority)


def scored_by(task, *arrays):
    return jax.device_get(jax.jit(lambda *args: score(task, *args, Data()))(*arrays))


def test_scores_of_known_responses():
    """Prompt +-+ has the chain + - -; one response of each kind."""
    prompt = Prompt(TASK.from_text("+-+=")[None])
    texts = ("+--.", "-.__", "++-.", "+-+-", "-+-.")
    token_BxGxT = np.stack([TASK.from_text(t) for t in texts])[None]
    p_stop_BxG = np.array([[0.1, 0.9, 0.3, 0.2, 0.8]])
    scored = scored_by(TASK, prompt, token_BxGxT, p_stop_BxG)
    assert scored.chain.departs.tolist() == [[False, True, True, True, True]]
    assert scored.chain.first_wrong[0, 1:].tolist() == [1, 2, 3, 1]
    found = jax.device_get(jax.jit(means)(scored))
    values = {name: float(mean.total / mean.count) for name, mean in found.items()}
    expected = {
        "accuracy": 4 / 5,  # the fourth has not ended
        "cot": 2 / 5,
        "p_long": 4 / 5,
        "accuracy_long": 3 / 4,
        "accuracy_short": 1.0,
        "first_wrong": (2 + 3 + 1) / 3,  # the short response does not count
        "p_stop_begun": (0.1 + 0.3 + 0.2) / 3,
        "p_stop_departed": (0.9 + 0.8) / 2,
        "ended": 4 / 5,
        "length_mean": (3 + 1 + 3 + 4 + 3) / 5,
        "length_median": 3.0,
    }
    assert values == pytest.approx(expected)


def test_first_wrong_token_of_long_responses():
    task = ParityConfig(6).make()
    prompt = Prompt(task.from_text("+-+-+-=")[None])  # chain + - - + + -
    lines = ["+--++-.", "+-+++-.", "---++-.", "+--++--", "+--.___", "+.", "+--++-_"]
    response = np.array([[task.from_text(line.ljust(7, "_")) for line in lines]])
    scored = scored_by(task, prompt, response, np.zeros((1, 7)))
    counted = scored.is_long & scored.chain.departs
    assert counted.tolist() == [[False, True, True, True, True, False, True]]
    assert scored.chain.first_wrong[counted].tolist() == [3, 1, 7, 4, 7]


def coin_model(p_stop):
    """First token from a fair coin; then EOS with p_stop, else the chain's last sign.

    Logits do not depend on the response: every token has the same distribution.
    """
    never = -np.inf
    sign, first = np.log((1 - p_stop) / 2), np.log(0.5)
    logits_V = np.float32([never, np.log(p_stop), never, sign, sign])
    first_V = np.float32([never, never, never, first, first])

    def spread(shape):
        return jnp.broadcast_to(logits_V, (*shape, TASK.vocab_size))

    def prompt_pass(params, prompt):
        return jnp.broadcast_to(first_V, (len(prompt.token), TASK.vocab_size)), None

    return Model(
        init=lambda key: None,
        prompt_pass=prompt_pass,
        response_pass=lambda params, token, context: spread(token.shape),
        empty_cache=lambda context, num, length: None,
        decode_step=lambda params, token, index, context, cache: (
            spread(token.shape),
            None,
        ),
        unembed=as_they_are,
    )


def test_the_decision_to_stop_is_read_from_the_logits():
    """At temperature t the odds of stopping are those of the logits to the 1 / t."""
    cfg = EvaluateConfig(400, (1.0, 2.0), num_samples=4)
    evaluate = jax.jit(make_evaluate(cfg, TASK, coin_model(0.6)))
    metrics = evaluate(jax.random.key(0), None, Data())
    metrics = jax.device_get(metrics)
    with np.errstate(invalid="ignore"):  # greedy never departs
        values = {k: float(mean.total / mean.count) for k, mean in metrics.items()}
    at_2 = 0.6**0.5 / (0.6**0.5 + 2 * 0.2**0.5)
    for name, p_stop in (("greedy", 0.6), ("t1", 0.6), ("t2", at_2)):
        for kind in ("begun", "departed"):
            if name != "greedy" or kind == "begun":
                found = values[f"{name}/p_stop_{kind}"]
                assert found == pytest.approx(p_stop, abs=1e-5), (name, kind)
    assert values["t1/p_long"] == pytest.approx(0.4, abs=0.05)
    assert {"t1/pass@4", "t2/maj@2"} <= set(values)
    assert not any(name.startswith("greedy/pass") for name in values)
    assert values["t1/pass@2"] <= values["t1/pass@4"]


@pytest.mark.parametrize("batch_size", [0, 4])
def test_a_policy_that_is_no_number_has_no_scores(batch_size):
    """Tokens drawn from NaN would say whatever their comparison with a number does."""
    cfg = EvaluateConfig(8, (1.0,), num_samples=2, batch_size=batch_size)
    model = make_table(TASK)
    evaluate = jax.jit(make_evaluate(cfg, TASK, model))
    params = model.init(jax.random.key(1))
    last = params.at[-2, 0].set(jnp.nan)  # of the last token of a response
    for table, is_known in ((params, True), (last, False)):
        scores = evaluate(jax.random.key(0), table, Data())
        values = [float(mean.value()) for mean in scores.values()]
        assert np.isfinite(values).any() == is_known
        assert np.isfinite(float(scores["greedy/accuracy"].value())) == is_known


# Given prompts


def test_evaluation_on_given_prompts(tmp_path, monkeypatch):
    """A model that knows only positions says "+." to every prompt."""
    task = ParityConfig(4).make()
    file = tmp_path / "held_out.txt"
    # A byte order mark, blank lines and spaces at the end of a line do not count.
    file.write_text("\ufeff++++=\n\n++--=+.  \n+---\n")  # two even, one odd
    monkeypatch.setenv("HOME", str(tmp_path))
    given = read_prompts("~/held_out.txt", task)
    assert given.mask is None
    assert [task.to_text(row) for row in given.token] == ["++++=", "++--=", "+---="]
    model = make_table(task)
    table = model.init(jax.random.key(0))
    table = table.at[4, PLUS].set(9.0).at[5, EOS].set(9.0)  # "+." to every prompt
    cfg = EvaluateConfig(num_prompts=8, temperatures=())  # 8 are not drawn
    evaluate = jax.jit(make_evaluate(cfg, task, model))
    scores = evaluate(jax.random.key(1), table, Data(eval_prompts=given))
    right = scores["greedy/accuracy"]
    assert (float(right.total), float(right.count)) == (2, 3)
    assert float(scores["greedy/first_wrong"].count) == 0  # no long response


def test_a_file_without_prompts_is_named(tmp_path):
    file = tmp_path / "held_out.txt"
    for content, said in (
        (None, "cannot be read"),
        (b"", "at least one prompt"),
        (b" \n\n", "at least one prompt"),
        (b"\xff", "cannot be read"),
        (b"+-+=\n+-=\n", "line 2: must begin with 3 bits"),
        (b"+-+=\n+-+\x0c+-+\n", "line 2: "),
    ):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ConfigError) as info:
            read_prompts(str(file), TASK)
        assert info.value.name == "eval_file" and said in str(info.value)


@pytest.mark.parametrize("name", ["accuracy", "length_mean", "maj@2"])
def test_scores_of_a_task_take_no_name_of_evaluation(name):
    class Renamed(Parity):
        def diagnostics(self, prompt, response_BxGxT, data=()):
            one_BxG = jnp.ones(response_BxGxT.shape[:2])
            return {name: (one_BxG, one_BxG)}

    task = Renamed(4)
    evaluate = make_evaluate(EvaluateConfig(4, (1.0,), 2), task, tiny_gpt2().make(task))
    params = jax.eval_shape(tiny_gpt2().make(task).init, jax.random.key(0))
    with pytest.raises(ConfigError, match=f"diagnostics='{name}': must be named other"):
        jax.eval_shape(evaluate, jax.random.key(0), params, Data())
