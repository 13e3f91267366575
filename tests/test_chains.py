"""Several kinds of chains: every demonstration is a right one, in the shares asked."""

from itertools import permutations, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity_jax.analysis.answers import first_wrong
from parity_jax.config import ConfigError
from parity_jax.evaluate import score
from parity_jax.hypers import Hypers
from parity_jax.tasks import ChainsConfig, ParityConfig, num_begun
from parity_jax.tasks.contract import check_task
from parity_jax.tasks.parity import EOS, MINUS, PAD, PLUS, SEP
from parity_jax.types import Data, Prompt

KINDS = ("shuffled", "leap2", "repeated")


def tokens_of(signs, max_len):
    token = [PLUS if s > 0 else MINUS for s in signs] + [EOS]
    return token + [0] * (max_len - len(token))


def chains_by_hand(x):
    """Every chain that may be shown of bits x, by kind."""
    parity = np.cumprod(x)
    orders = {tuple(np.cumprod(p)) for p in permutations(x)}
    return {
        "full": [parity],
        "leap2": [[*parity[1:-1:2], parity[-1]]],
        "repeated": [np.repeat(parity, 2)],
        "shuffled": orders,
    }


def test_demonstrations_rewards_and_shares_by_hand():
    cfg = ChainsConfig(3, KINDS, weights=(2.0, 1.0, 1.0))
    task = cfg.make()
    check_task(cfg, task)
    prompt = task.sample_prompts(jax.random.key(0), 4096)
    hypers = Hypers(p_cot=0.8)
    batch = jax.jit(lambda key: task.demonstrate(key, prompt, hypers))(
        jax.random.key(1)
    )
    for reward in task.rewards.values():
        assert (reward(prompt, batch.response[:, None]) == 1).all()
    found = task.diagnostics(prompt, batch.response[:, None])
    for kind, share in zip(KINDS, (0.4, 0.2, 0.2), strict=True):
        value, mask = found[f"share_{kind}"]
        assert mask.all() and abs(float(value.mean()) - share) < 0.04
    allowed = {}
    for x in product((-1, 1), repeat=3):
        hand = chains_by_hand(np.array(x))
        shown = [s for kind in KINDS for s in hand[kind]] + [[np.prod(x)]]
        allowed[x] = {tuple(tokens_of(s, 7)) for s in shown}
    bits = np.where(np.asarray(prompt.token[:, :3]) == PLUS, 1, -1)
    seen = {x: set() for x in allowed}
    for x, response in zip(bits.tolist(), batch.response.tolist(), strict=True):
        seen[tuple(x)].add(tuple(response))
    assert seen == allowed  # each of them comes, and nothing else


@pytest.mark.parametrize("kinds", [("shuffled",), ("leap2", "shuffled"), ("full",)])
def test_of_all_responses_only_right_chains_are_paid(kinds):
    """A policy may sample any token anywhere, padding and separator too."""
    task = ChainsConfig(4, kinds, (1.0,) * len(kinds)).make()
    tokens = range(task.vocab_size)
    all_NxT = np.array([*product(tokens, repeat=task.format.max_len)])
    is_end = np.isin(all_NxT, task.format.end_ids)
    after_NxT = np.cumsum(is_end, 1) - is_end > 0  # where nothing is sampled any more
    all_NxT = all_NxT[((all_NxT == PAD) | ~after_NxT).all(1)]
    for x in product((-1, 1), repeat=4):
        prompt = Prompt(jnp.array([[PLUS if s > 0 else MINUS for s in x] + [SEP]]))
        hand = chains_by_hand(np.array(x))
        shown = [s for kind in kinds for s in hand[kind]] + [[np.prod(x)]]
        right = {tuple(tokens_of(s, task.format.max_len)) for s in shown}
        paid = task.reward_cot(prompt, jnp.array(all_NxT)[None])[0] == 1
        assert {*map(tuple, all_NxT[np.array(paid)].tolist())} == right


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"chains": ()}, "must name at least one kind"),
        ({"weights": (1.0,)}, "must give one weight for each"),
        ({"weights": (1.0, 0.0)}, "must be positive and finite"),
        ({"chains": ("full", "shuffled")}, "must be of different lengths"),
        ({"num_bits": 4, "chains": ("full", "leap4")}, "must be longer than 1 at"),
        ({"weights": (1e308, 1e308)}, "must have a finite sum"),
        ({"num_bits": 1}, "must be in [2, "),
    ],
)
def test_mixtures_that_mean_nothing_are_refused(fields, part):
    with pytest.raises(ConfigError) as error:
        ChainsConfig(**{"num_bits": 4} | fields)
    assert part in str(error.value)
    with pytest.raises(ConfigError, match=r"step_noise=.*: must be 0"):
        ChainsConfig(4).check(Hypers(step_noise=0.1))


@pytest.mark.parametrize(
    "cfg",
    [
        ChainsConfig(3, ("shuffled",), (1.0,)),
        ChainsConfig(3, ("leap2", "shuffled", "repeated"), (1.0,) * 3),
        ChainsConfig(3, ("full", "leap2"), (1.0, 1.0)),
        ParityConfig(3, leap=2),
        ParityConfig(3),
    ],
)
def test_a_response_departs_where_it_begins_no_right_chain(cfg):
    """Against all that is paid: the longest beginning that any of it has."""
    task = cfg.make()
    T = min(task.format.max_len, 5)  # of longer ones only what begins so
    tokens = [*product((EOS, MINUS, PLUS), repeat=T)]
    tokens = [t + (PAD,) * (task.format.max_len - T) for t in tokens]
    tokens = [ended(t) for t in tokens]
    all_NxT = np.array(sorted({*tokens}))
    hand = ("full", "leap2") if isinstance(cfg, ParityConfig) else cfg.chains
    if isinstance(cfg, ParityConfig) and cfg.leap == 1:
        hand = ("full",)
    for x in product((-1, 1), repeat=3):
        prompt = Prompt(jnp.array([[PLUS if s > 0 else MINUS for s in x] + [SEP]]))
        chains = chains_by_hand(np.array(x))
        right = [s for kind in hand for s in chains[kind]]
        right_MxT = np.array([tokens_of(s, task.format.max_len) for s in right])
        same = all_NxT[:, None] == right_MxT
        expected = same.cumprod(-1).sum(-1).max(1)
        found = num_begun(task, prompt, jnp.array(all_NxT)[None], ())
        np.testing.assert_array_equal(found[0], expected)
        wrong = first_wrong(task, prompt, jnp.array(all_NxT)[None])[0]
        is_long = np.asarray(task.is_long(jnp.array(all_NxT)[None]))[0]
        np.testing.assert_array_equal(wrong[is_long], expected[is_long])
        stops = np.zeros((1, len(all_NxT)))
        scored = score(task, prompt, jnp.array(all_NxT)[None], stops, Data())
        is_whole = expected == task.format.max_len
        np.testing.assert_array_equal(scored.chain.departs[0], ~is_whole)
        paid = np.asarray(scored.cot[0])
        np.testing.assert_array_equal(paid[is_long], is_whole[is_long])


def ended(token):
    """With padding behind its end."""
    place = token.index(EOS) if EOS in token else len(token)
    return token[: place + 1] + (PAD,) * (len(token) - place - 1)
