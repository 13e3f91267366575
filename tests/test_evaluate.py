"""Scores of responses with known answers."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity_jax.config import EvaluateConfig, ParityConfig
from parity_jax.evaluate import make_evaluate, means, score, success_tables
from parity_jax.models import Model
from parity_jax.tasks import make_task
from parity_jax.types import EOS

TASK = make_task(ParityConfig(3))


@pytest.mark.parametrize("k", [2, 4])
def test_success_tables_count_all_subsets(k):
    """Against the mean over every choice of k of 5 samples."""
    tables = success_tables(5)
    assert set(tables) == {"pass@2", "maj@2", "pass@4", "maj@4"}
    for num_right in range(6):
        right = [1] * num_right + [0] * (5 - num_right)
        counts = np.array([sum(chosen) for chosen in combinations(right, k)])
        majority = np.mean((2 * counts > k) + (2 * counts == k) / 2)
        assert tables[f"pass@{k}"][num_right] == pytest.approx(np.mean(counts > 0))
        assert tables[f"maj@{k}"][num_right] == pytest.approx(majority)


def test_scores_of_known_responses():
    """Prompt +-+ has the chain + - -; one response of each kind."""
    prompt_BxL = TASK.from_text("+-+=")[None]
    worked_BxT = TASK.from_text("+--.")[None]
    texts = ("+--.", "-.__", "++-.", "+-+-", "-+-.")
    token_BxGxT = jnp.stack([TASK.from_text(t) for t in texts])[None]
    p_stop_BxG = jnp.array([[0.1, 0.9, 0.3, 0.2, 0.8]])
    scored = score(TASK, prompt_BxL, worked_BxT, token_BxGxT, p_stop_BxG)
    assert scored.departs.tolist() == [[False, True, True, True, True]]
    assert scored.first_wrong[0, 1:].tolist() == [1, 2, 3, 1]
    values = {name: float(mean.value()) for name, mean in means(scored).items()}
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


def coin_model(p_stop):
    """First token from a fair coin; then EOS with p_stop, else the chain's last sign.

    Logits do not depend on the response: every token has the same distribution.
    """
    sign = jnp.log((1 - p_stop) / 2)
    logits_V = jnp.full(TASK.vocab_size, -jnp.inf).at[EOS].set(jnp.log(p_stop))
    logits_V = logits_V.at[3:].set(sign)
    first_V = jnp.full(TASK.vocab_size, -jnp.inf).at[3:].set(jnp.log(0.5))

    def spread(shape):
        return jnp.broadcast_to(logits_V, (*shape, TASK.vocab_size))

    return Model(
        init=lambda key: None,
        prompt_pass=lambda params, prompt: (
            jnp.broadcast_to(first_V, (prompt.shape[0], TASK.vocab_size)),
            None,
        ),
        response_pass=lambda params, token, context: spread(token.shape),
        empty_cache=lambda context, num, length: None,
        decode_step=lambda params, token, index, context, cache: (
            spread(token.shape),
            None,
        ),
    )


def test_the_decision_to_stop_is_read_from_the_logits():
    """At temperature t the odds of stopping are those of the logits to the 1 / t."""
    cfg = EvaluateConfig(400, (1.0, 2.0), num_samples=4)
    evaluate = make_evaluate(cfg, TASK, coin_model(0.6))
    metrics = evaluate(jax.random.key(0), None)
    values = {name: float(mean.value()) for name, mean in metrics.items()}
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
