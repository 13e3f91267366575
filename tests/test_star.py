"""STaR keeps what is right, trains on it once per epoch, and doubles the odds."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logit
from small_worlds import (
    SURE,
    Heads,
    all_prompts,
    all_responses,
    first_gradient,
    make_heads,
    make_table,
    no_evaluation,
    num_updates,
)

from parity_jax import theory
from parity_jax.hypers import Hypers
from parity_jax.member import guarded_step
from parity_jax.models import response_logits
from parity_jax.optim import OptimizerConfig
from parity_jax.policy import tempered, token_log_probs
from parity_jax.stages import RolloutConfig, StarConfig
from parity_jax.stages.rollout import Rollout, make_sampler
from parity_jax.stages.stage import StepKeys
from parity_jax.stages.star import flatten_groups, is_kept
from parity_jax.tasks import ParityConfig
from parity_jax.tasks.parity import EOS, token_signs
from parity_jax.types import NOTHING_KEPT, RUNNING, Data, Prompt, Response

TASK = ParityConfig(2).make()  # T = 3
DEFAULT = Hypers()
FROZEN = Hypers(learning_rate=0.0, temperature=1.5)


def stage_of(cfg):
    return cfg.make(TASK, make_table(TASK), no_evaluation)


@lru_cache
def compiled_step(cfg):
    stage = stage_of(cfg)
    return jax.jit(lambda state: stage.step(state, Data()))


@lru_cache
def compiled_sampler(cfg):
    sampler = make_sampler(cfg, TASK, make_table(TASK))
    return jax.jit(lambda state: sampler(state, StepKeys.of(state), Data()))


def one_round(cfg, hypers=DEFAULT):
    """State before and after a round, its metrics, and what it must have sampled."""
    state = stage_of(cfg).init(jax.random.key(0), hypers, None)
    new, metrics = jax.device_get(compiled_step(cfg)(state))
    metrics = {name: (float(m.total), float(m.count)) for name, m in metrics.items()}
    rollout = jax.device_get(compiled_sampler(cfg.rollout)(state))
    return state, new, metrics, rollout


def kept_log_probs(params, rollout):
    """log pi at temperature 1 of the tokens of the kept responses, and their mask."""
    kept = np.asarray(rollout.reward) == 1
    token = np.asarray(rollout.response.token)[kept]
    log_prob = np.log(np.exp(params) / np.exp(params).sum(1, keepdims=True))
    rows = TASK.prompt_len - 1 + np.arange(3)
    mask = np.cumsum(token == EOS, 1) - (token == EOS) == 0
    return log_prob[rows, token], mask, token


def config(num_prompts, num_generations, batch_size, num_epochs, **options):
    rollout = RolloutConfig(num_prompts, num_generations)
    return StarConfig(rollout, batch_size, num_epochs, **options)


def test_one_minibatch_is_the_mean_loss_of_exactly_the_kept_samples():
    """Fewer are kept than fit: neither the others nor the batch size has a say.

    They are sampled at temperature 1.5 and learned at temperature 1.
    """
    cfg = config(32, 4, 128, 1)
    state, new, metrics, rollout = one_round(cfg, FROZEN)
    params = np.asarray(state.params, float)
    log_prob, mask, token = kept_log_probs(params, rollout)
    num_kept = len(token)
    assert 4 < num_kept < 120
    assert metrics["kept_ratio"] == (num_kept, 128)
    assert metrics["updates"] == (1, 1)
    np.testing.assert_allclose(
        metrics["loss"], (-(log_prob * mask).sum() / num_kept, 1), rtol=1e-5
    )
    expected = np.zeros_like(params)
    for t in range(3):
        row = TASK.prompt_len - 1 + t
        one_hot = token[:, t, None] == np.arange(5)
        error = one_hot - np.exp(params[row]) / np.exp(params[row]).sum()
        expected[row] = -(mask[:, t, None] * error).sum(0) / num_kept
    np.testing.assert_allclose(first_gradient(new), expected, atol=1e-6)


def test_weights_that_sum_to_1_keep_what_is_right():
    """In float32 0.15 + 0.65 + 0.2 is less than 1."""
    rewards, weights = ("e2e",) * 3, (0.15, 0.65, 0.2)
    rollout = RolloutConfig(32, 4, rewards, weights)
    _, _, metrics, drawn = one_round(StarConfig(rollout, 16, 1), FROZEN)
    num_right = float(drawn.correct.sum())
    assert 0 < num_right < 128
    assert metrics["kept_ratio"] == (num_right, 128)


def test_every_kept_sample_is_used_once_per_epoch():
    """With learning rate 0 the losses of an epoch add up to those of the kept set."""
    batch_size, num_epochs = 4, 3
    cfg = config(32, 4, batch_size, num_epochs)
    state, new, metrics, rollout = one_round(cfg, FROZEN)
    log_prob, mask, token = kept_log_probs(np.asarray(state.params, float), rollout)
    total, count = metrics["token_loss"]
    np.testing.assert_allclose(total, -num_epochs * (log_prob * mask).sum(), rtol=1e-5)
    assert count == num_epochs * mask.sum()
    assert len(token) % batch_size  # the last minibatch is part full
    num_minibatches = num_epochs * -(-len(token) // batch_size)
    assert metrics["updates"] == (num_minibatches, 1)
    assert metrics["loss"][1] == num_minibatches
    assert num_updates(new) == num_minibatches
    assert new.status == RUNNING and new.step == 1


def test_a_part_full_minibatch_is_a_mean_over_what_it_holds():
    rollout = RolloutConfig(8, 1, rewards=("small_worlds:first_five_prompts",))
    cfg = StarConfig(rollout, batch_size=4, num_epochs=1)
    state, _, metrics, rollout = one_round(cfg, FROZEN)
    log_prob, mask, token = kept_log_probs(np.asarray(state.params, float), rollout)
    assert len(token) == 5
    loss = -(log_prob * mask).sum(1)
    by_last = [(loss.sum() - last) / 4 + last for last in loss]
    errors = np.abs(np.array(by_last) - metrics["loss"][0])
    assert errors.min() < 1e-5
    wrong = [(loss.sum() - last) / 4 + last / 4 for last in loss]
    assert np.abs(np.array(wrong) - metrics["loss"][0]).min() > 1e-3


def test_epochs_are_shuffled_differently():
    """Adam's mean of the same minibatches in the same order would be a known one."""
    ends = []
    for num_epochs in (1, 3):
        opt_state = one_round(config(32, 4, 4, num_epochs), FROZEN)[1].opt_state
        ends.append((np.asarray(opt_state[0].mu, float), int(opt_state[0].count)))
    # b1 = 0.9: after three epochs it is (1 + 0.9^n + 0.9^2n) times that after the first
    # if all have the same order of n minibatches.
    (first, n), (third, _) = ends
    same_order = first * (1 + 0.9**n + 0.9 ** (2 * n))
    assert np.abs(third - same_order).max() > 1e-3


def test_decay_halves_the_second_of_two_updates():
    def end(num_epochs, decay):
        cfg = config(32, 4, 128, num_epochs, decay=decay)
        state = stage_of(cfg).init(jax.random.key(0), DEFAULT, None)
        return np.asarray(compiled_step(cfg)(state)[0].params)

    first, plain, decayed = end(1, False), end(2, False), end(2, True)
    assert np.abs(plain - first).max() > 5e-4
    # It starts at 1, or the second would not begin where the first one ends.
    np.testing.assert_allclose(decayed - first, (plain - first) / 2, atol=1e-6)


@pytest.mark.parametrize("restart", [False, True])
def test_restart_trains_the_parameters_of_the_parent_run(restart):
    cfg = config(32, 4, 4, 3, restart=restart)
    step = compiled_step(cfg)
    parent = make_table(TASK).init(jax.random.key(5))
    hypers = Hypers(learning_rate=0.0)
    start = stage_of(cfg).init(jax.random.key(0), hypers, parent)
    moved = start._replace(params=parent + jnp.arange(5.0)[None])
    after, metrics = step(moved)
    np.testing.assert_array_equal(after.params, parent if restart else moved.params)
    # What is sampled comes from the current parameters in both cases: EOS is rare.
    assert metrics["kept_ratio"].total != step(start)[1]["kept_ratio"].total
    again, second = step(after)
    of_two = metrics["updates"].total + second["updates"].total
    assert num_updates(again) == (second["updates"].total if restart else of_two)
    assert (start.reference is not None) == restart


def test_a_round_that_keeps_nothing_freezes_the_member():
    rollout = RolloutConfig(8, 2, rewards=("small_worlds:never",))
    decay = OptimizerConfig(weight_decay=0.1)
    cfg = StarConfig(rollout, batch_size=4, num_epochs=2, optimizer=decay)
    stage = stage_of(cfg)
    state = stage.init(jax.random.key(0), Hypers(), None)

    step = compiled_step(cfg)
    stage = stage._replace(step=lambda state, data: step(state))
    plain, plain_metrics = step(state)
    frozen, metrics = guarded_step(stage, state, Data())
    later, _ = guarded_step(stage, frozen, Data())
    assert plain.status == NOTHING_KEPT
    assert plain_metrics["updates"].total == 0
    assert plain_metrics["kept_ratio"].value() == 0
    np.testing.assert_array_equal(plain.params, state.params)
    for after in (frozen, later):
        assert after.status == NOTHING_KEPT
        assert after.step == state.step == 0
        np.testing.assert_array_equal(after.params, state.params)
    assert all(float(m.count) == 0 for m in metrics.values())


def test_groups_are_flattened_in_order():
    token = jnp.arange(2 * 3 * 4).reshape(2, 3, 4)
    response = Response(token, 1.0 * token, token > 5)
    reward = jnp.array([[0.0, 1, 0], [1, 1, 0]])
    prompt = Prompt(jnp.array([[7], [8]]))
    samples = flatten_groups(Rollout(prompt, response, reward, 1 - reward))
    assert samples.prompt.token[:, 0].tolist() == [7, 7, 7, 8, 8, 8]
    assert samples.response.token[:, 0, 0].tolist() == [0, 4, 8, 12, 16, 20]
    assert is_kept(samples).tolist() == [False, True, False, True, True, False]
    assert samples.correct[:, 0].tolist() == [1, 0, 1, 0, 0, 1]


# The kept set of a tabular policy, by enumeration of all prompts and all responses.

SMALL = ParityConfig(4).make()


@lru_cache
def scored_worlds():
    """Every response to every prompt, one of each: prompts, tokens, mask, rewards."""
    prompt, (token, mask) = all_prompts(SMALL), all_responses(SMALL)
    num = len(prompt.token)
    prompt = Prompt(np.repeat(prompt.token, len(token), 0))
    token, mask = np.tile(token, (num, 1))[:, None], np.tile(mask, (num, 1))[:, None]
    rewards = {k: np.asarray(f(prompt, token)) for k, f in SMALL.rewards.items()}
    return prompt, token, mask, rewards


@jax.jit
def log_probs(params, prompt, token, tau):
    logits = response_logits(make_heads(SMALL), params, prompt, token)
    return token_log_probs(tempered(logits, tau), token)


def kept_distribution(logits, tau, reward):
    """A, C+, C-, eps of the kept responses and the share that is kept, exactly."""
    prompt, token, mask, rewards = scored_worlds()
    log_prob = log_probs(Heads(*map(jnp.float32, logits)), prompt, token, tau)
    log_prob = np.where(mask, np.asarray(log_prob, float), 0)
    prob = np.exp(log_prob[:, 0].sum(-1)) / 2**SMALL.num_bits
    assert prob.sum() == pytest.approx(1, abs=1e-5)
    response = Response(token, log_prob, mask)
    kept = is_kept(Rollout(prompt, response, rewards[reward], rewards[reward]))
    x, y = np.asarray(token_signs(prompt.token[:, :-1])), token_signs(token[:, 0])
    y = np.asarray(y)
    right, long = y[:, 0] == x[:, 0], token[:, 0, 1] != EOS
    wrong_steps = y[:, 1:4] != y[:, :3] * x[:, 1:]

    def share(event, given):
        return prob[kept & event & given].sum() / prob[kept & given].sum()

    state = theory.State(
        A=share(right, True),
        C_plus=share(long, right),
        C_minus=share(long, ~right),
        eps=np.array([share(wrong, long) for wrong in wrong_steps.T]),
    )
    return state, prob[kept].sum()


def test_the_kept_set_is_that_of_the_recursion():
    for tau, chain, reward in (
        (1.0, (2.0, 1.0, 3.0), "e2e"),
        (1.0, (2.0, 1.0, 3.0), "cot"),
        # Stop and second bit share one softmax: at tau != 1 the recursion is exact if
        # that bit is sure.
        (0.7, (SURE, 1.0, 3.0), "e2e"),
        (1.5, (SURE, 1.0, 3.0), "cot"),
    ):
        logits = theory.State(0.6, -0.4, -1.5, np.array(chain))
        expected, expected_rate = theory.star_state_step(logits, tau, reward)
        state, keep_rate = kept_distribution(logits, tau, reward)
        np.testing.assert_allclose(keep_rate, expected_rate, atol=1e-5)
        for name in theory.State._fields:
            np.testing.assert_allclose(
                getattr(state, name), getattr(expected, name), atol=1e-5, err_msg=name
            )


def test_the_kept_share_of_long_answers_is_2p_over_1_plus_p():
    for p, reward in ((0.1, "e2e"), (0.25, "cot"), (0.6, "e2e")):
        u, v = np.log((1 + p) / (1 - p)), np.log(2 * p / (1 - p))
        state, keep_rate = kept_distribution((u, v, -SURE, SURE), 1.0, reward)
        np.testing.assert_allclose(keep_rate, (1 + p) / 2, atol=1e-5)
        long = state.A * state.C_plus
        np.testing.assert_allclose(long, theory.star_p(p, 1), atol=1e-5)
        np.testing.assert_allclose(long, 2 * p / (1 + p), atol=1e-5)


# The whole stage on the two-logit policy, refitted to the optimum.


def next_odds(a, c, tau):
    """Odds of y_1 = x_1 and of going on in the kept set, if long answers are right.

    Of the answers with y_1 = x_1 the long ones are kept and half of the short ones.
    """
    a, c = a ** (1 / tau), c ** (1 / tau)
    right, long = a / (1 + a), c / (1 + c)
    kept_right, kept_wrong = right * (long + (1 - long) / 2), (1 - right) / 2
    return kept_right / kept_wrong, long / ((1 - long) / 2)


@lru_cache
def compiled_refit():
    """A stage that is refitted to the optimum, and its round with what it sampled."""
    rollout = RolloutConfig(1024, 1)
    cfg = StarConfig(rollout, batch_size=1024, num_epochs=120, decay=True)
    model = make_heads(SMALL)
    stage = cfg.make(SMALL, model, no_evaluation)
    sampler = make_sampler(rollout, SMALL, model)

    @jax.jit
    def both(state):
        return stage.step(state, Data()), sampler(state, StepKeys.of(state), Data())

    return stage, both


@pytest.mark.parametrize("tau", [1.0, 1.5])
def test_rounds_of_the_stage_follow_the_recursion(tau):
    p, (stage, both) = 0.25, compiled_refit()
    u, v = np.log((1 + p) / (1 - p)), np.log(2 * p / (1 - p))
    start = Heads(*map(jnp.float32, (u, v, -SURE, SURE)))
    hypers = Hypers(temperature=tau, learning_rate=0.1)
    state = stage.init(jax.random.key(1), hypers, start)
    a, c = np.exp([u, v])
    for _ in range(3):
        # From where this round started, what it must come to on average.
        before = np.exp([float(state.params.first), float(state.params.gate_right)])
        expected = np.array(next_odds(*before, tau))
        a, c = next_odds(a, c, tau)
        (state, metrics), rollout = jax.device_get(both(state))
        assert state.status == RUNNING

        kept = rollout.reward[:, 0] == 1
        token = rollout.response.token[kept, 0]
        right = token[:, 0] == rollout.prompt.token[kept, 0]
        long = token[:, 1] != EOS
        frequency = np.array([right.mean(), long[right].mean()])
        fitted = expit(np.array([state.params.first, state.params.gate_right], float))
        np.testing.assert_allclose(fitted, frequency, atol=2e-3)  # refit to the optimum

        mean = expected / (1 + expected)
        error = np.sqrt(mean * (1 - mean) / [kept.sum(), right.sum()])
        assert (np.abs(frequency - mean) < 4 * error).all()
        share = metrics["kept_p_long"].total / metrics["kept_p_long"].count
        np.testing.assert_allclose(share, long.mean(), rtol=1e-5)
    # Three rounds away from the start, errors of the rounds have added up.
    np.testing.assert_allclose(
        [state.params.first, state.params.gate_right], np.log([a, c]), atol=0.35
    )
    if tau == 1:
        assert abs(expit(np.log(a)) * expit(np.log(c)) - theory.star_p(p, 3)) < 1e-6
        assert float(state.params.gate_right) > logit(0.5)  # greedy is long by now
