"""Parity against brute-force Python: demonstrations, rewards, noise, mixture, text."""

import functools
import itertools
import math
from itertools import accumulate
from operator import mul

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity_jax.config import ParityConfig
from parity_jax.evaluate import score
from parity_jax.tasks import make_task
from parity_jax.tasks.parity import token_signs
from parity_jax.types import EOS, Hypers

D = 6
CLEAN = Hypers(p_cot=0.0)
INPUTS = {d: list(itertools.product([1, -1], repeat=d)) for d in (4, D)}


def text(signs):
    return "".join("+" if s > 0 else "-" for s in signs)


@functools.cache
def parity(d=D, leap=1):
    """The task and its compiled demonstrate."""
    task = make_task(ParityConfig(d, leap))
    return task, jax.jit(task.demonstrate)


def tokens(lines, length):
    """Lines, padded to a length, as tokens (test_text_round_trip ties the two)."""
    return np.array([["_.=+-".index(c) for c in t.ljust(length, "_")] for t in lines])


def prompts(d):
    return tokens([text(signs) + "=" for signs in INPUTS[d]], d + 1)


def running(signs):
    return list(accumulate(signs, mul))


def demonstrations(hypers, leap=1, seed=0):
    """Text of one demonstration of every input, in order of the inputs."""
    task, demonstrate = parity(D, leap)
    batch = demonstrate(jax.random.key(seed), prompts(D), hypers)
    np.testing.assert_array_equal(batch.prompt, prompts(D))
    return [task.to_text(row).rstrip("_") for row in np.asarray(batch.response)]


def within_4_sigma(hits, p):
    hits = np.asarray(hits)
    sigma = math.sqrt(p * (1 - p) / hits.size)
    return abs(hits.mean() - p) <= 4 * sigma


# Demonstrations


def test_long_and_short_demonstrations_of_all_inputs():
    assert demonstrations(Hypers(p_cot=1.0)) == [
        text(running(signs)) + "." for signs in INPUTS[D]
    ]
    assert demonstrations(Hypers(p_cot=0.0)) == [
        text([math.prod(signs)]) + "." for signs in INPUTS[D]
    ]


@pytest.mark.parametrize("leap", [1, 2, 3, 4, 5, 6])
def test_leap_demonstrations_of_all_inputs(leap):
    expected = []
    for signs in INPUTS[D]:
        shown = [
            math.prod(signs[:n]) for n in range(1, D + 1) if n % leap == 0 or n == D
        ]
        expected.append(text(shown) + ".")
    assert demonstrations(Hypers(p_cot=0.0, p_leap=1.0), leap) == expected


def test_sampled_prompts_are_uniform_bits_and_a_separator():
    task = parity()[0]
    prompt = task.sample_prompts(jax.random.key(0), 4096)
    assert prompt.shape == (4096, task.prompt_len) and task.prompt_len == D + 1
    np.testing.assert_array_equal(np.abs(token_signs(prompt))[:, :D], 1)
    assert {task.to_text(row[-1:]) for row in prompt[:8]} == {"="}
    positive = np.asarray(token_signs(prompt[:, :D])) > 0
    for i, j in itertools.combinations(range(D), 2):
        assert within_4_sigma(positive[:, i] == positive[:, j], 0.5)
    for i in range(D):
        assert within_4_sigma(positive[:, i], 0.5)


# The mixture


@pytest.fixture(scope="module")
def mixture():
    """The task with leap 2, and a large batch with p_cot = 0.3, p_leap = 0.2."""
    task, demonstrate = parity(D, 2)
    hypers = Hypers(p_cot=0.3, p_leap=0.2)
    prompt = task.sample_prompts(jax.random.key(1), 8192)
    return task, jax.device_get(demonstrate(jax.random.key(2), prompt, hypers))


def test_mixture_rates(mixture):
    length = np.asarray(mixture[1].mask).sum(1) - 1
    assert set(length.tolist()) == {D, D // 2, 1}
    assert within_4_sigma(length == D, 0.3)
    assert within_4_sigma(length == D // 2, 0.2)
    assert within_4_sigma(length == 1, 0.5)


def test_longest_first(mixture):
    length = np.asarray(mixture[1].mask).sum(1)
    assert (np.diff(length) <= 0).all() and length[0] > length[-1]


def test_mask_is_true_exactly_through_eos(mixture):
    task, batch = mixture
    for row, mask in zip(batch.response[::16], batch.mask[::16], strict=True):
        line = task.to_text(row)
        end = line.index(".")
        assert set(line[end + 1 :]) <= {"_"}
        assert np.asarray(mask).tolist() == [i <= end for i in range(D + 1)]


def test_kinds_differ_between_keys_and_not_in_total_only(mixture):
    batch, demonstrate = mixture[1], parity(D, 2)[1]
    hypers = Hypers(p_cot=0.3, p_leap=0.2)
    again = demonstrate(jax.random.key(3), batch.prompt, hypers)
    num_long = [int((b.mask.sum(1) == D + 1).sum()) for b in (batch, again)]
    assert num_long[0] != num_long[1]  # independent draws, not a fixed count


# Noise


def chain_signs(leap=1, copies=64, **noise):
    """Input signs and shown chain signs of many noisy chains, NxD and NxM."""
    kind = {"p_cot": 1.0} if leap == 1 else {"p_cot": 0.0, "p_leap": 1.0}
    prompt = np.tile(prompts(D), (copies, 1))
    batch = parity(D, leap)[1](jax.random.key(4), prompt, Hypers(**kind, **noise))
    shown = np.asarray(token_signs(batch.response))
    length = int(batch.mask[0].sum()) - 1
    assert (shown[:, length:] == 0).all() and (shown[:, :length] != 0).all()
    return np.asarray(token_signs(prompt[:, :D])), shown[:, :length]


def clean_chain(x, leap):
    ends = [n for n in range(1, x.shape[1] + 1) if n % leap == 0 or n == x.shape[1]]
    return np.stack([x[:, :n].prod(1) for n in ends], 1)


@pytest.mark.parametrize("leap", [1, 2, 4])
def test_certain_noise_flips_every_intermediate_token(leap):
    x, shown = chain_signs(leap, copies=1, emit_noise=1.0)
    clean = clean_chain(x, leap)
    np.testing.assert_array_equal(shown[:, :-1], -clean[:, :-1])
    np.testing.assert_array_equal(shown[:, -1], clean[:, -1])


@pytest.mark.parametrize("leap", [1, 2, 4])
def test_certain_step_noise_propagates(leap):
    x, shown = chain_signs(leap, copies=1, step_noise=1.0)
    clean = clean_chain(x, leap)
    last = clean.shape[1] - 1
    for j in range(last + 1):  # the number of wrong steps so far; the last is clean
        flips = min(j + 1, last)
        np.testing.assert_array_equal(shown[:, j], clean[:, j] * (-1) ** flips)


@pytest.mark.parametrize("leap", [1, 3])
def test_emit_noise_rate_and_clean_answer(leap):
    x, shown = chain_signs(leap, emit_noise=0.3)
    wrong = shown != clean_chain(x, leap)
    assert not wrong[:, -1].any()
    for j in range(wrong.shape[1] - 1):
        assert within_4_sigma(wrong[:, j], 0.3)
    if leap == 1:  # shown tokens are flipped one by one
        assert within_4_sigma(wrong[:, 0] & wrong[:, 1], 0.3**2)


def test_step_noise_rate_and_clean_last_step():
    x, shown = chain_signs(step_noise=0.3)
    before = np.concatenate([np.ones_like(shown[:, :1]), shown[:, :-1]], 1)
    wrong_step = shown != before * x
    assert not wrong_step[:, -1].any()
    for j in range(D - 1):
        assert within_4_sigma(wrong_step[:, j], 0.3)
    assert within_4_sigma(wrong_step[:, 0] & wrong_step[:, 1], 0.3**2)
    wrong_answer = shown[:, -1] != x.prod(1)
    assert within_4_sigma(wrong_answer, (1 - (1 - 2 * 0.3) ** (D - 1)) / 2)


def test_short_noise():
    clean = demonstrations(CLEAN)
    flipped = demonstrations(Hypers(p_cot=0.0, short_noise=1.0))
    swap = str.maketrans("+-", "-+")
    assert flipped == [line.translate(swap) for line in clean]
    wrong = [
        noisy != line
        for seed in range(32)
        for noisy, line in zip(
            demonstrations(Hypers(p_cot=0.0, short_noise=0.2), seed=seed),
            clean,
            strict=True,
        )
    ]
    assert within_4_sigma(wrong, 0.2)
    noisy = Hypers(p_cot=1.0, short_noise=1.0)  # and touches no chain
    assert demonstrations(noisy) == demonstrations(Hypers(p_cot=1.0))


def test_noise_of_chains_leaves_short_answers_alone():
    noisy = Hypers(p_cot=0.0, emit_noise=1.0, step_noise=1.0)
    assert demonstrations(noisy) == demonstrations(CLEAN)


# Rewards


def e2e(signs, line):
    body, eos, _ = line.partition(".")
    return float(bool(eos) and body[-1:] == text([math.prod(signs)]))


def cot(signs, line):
    answers = (text(running(signs)) + ".", text([math.prod(signs)]) + ".")
    return float(line in [answer.ljust(len(signs) + 1, "_") for answer in answers])


def is_long(line):
    return line[0] != "." and line[1] != "."


def assert_scores(d, lines_per_input):
    """Rewards and is_long of BxG response texts are those of plain Python."""
    task = parity(d)[0]
    response = jnp.array([tokens(lines, d + 1) for lines in lines_per_input])
    lines_per_input = [[x.ljust(d + 1, "_") for x in ls] for ls in lines_per_input]
    for name, reference in (("e2e", e2e), ("cot", cot)):
        expected = [
            [reference(signs, line) for line in lines]
            for signs, lines in zip(INPUTS[d], lines_per_input, strict=True)
        ]
        reward = jax.jit(task.rewards[name])(jnp.array(prompts(d)), response)
        np.testing.assert_array_equal(reward, expected)
        assert 0 < np.mean(expected) < 1
    expected = [[is_long(line) for line in lines] for lines in lines_per_input]
    np.testing.assert_array_equal(task.is_long(response), expected)


def test_rewards_of_all_inputs():
    lines_per_input = []
    for signs in INPUTS[D]:
        chain, short = text(running(signs)), text([math.prod(signs)])
        wrong = "-" if short == "+" else "+"
        flipped = [
            chain[:i] + ("-" if chain[i] == "+" else "+") + chain[i + 1 :] + "."
            for i in range(D)
        ]
        malformed = [
            chain + chain[-1],  # no EOS
            short * (D + 1),
            ".",  # EOS first
            "." + chain,
            "_" + short + ".",  # PAD and SEP inside
            chain[:2] + "_" + chain[3:] + ".",
            "=" + short + ".",
            short + "=.",
            chain[:-1] + "=.",
            short + "." + wrong,  # junk behind EOS
            short + ".." + wrong,
            wrong + "." + short + ".",
            short + ".=",
        ]
        truncated = [chain[:n] + "." for n in range(D)]
        good = [chain + ".", short + ".", wrong + "."]
        lines_per_input.append(good + flipped + truncated + malformed)
    assert_scores(D, lines_per_input)


def test_rewards_of_all_responses():
    """Every one of the 5^5 token sequences to every prompt of 4 bits."""
    lines = ["".join(symbols) for symbols in itertools.product("_.=+-", repeat=5)]
    assert_scores(4, [lines] * len(INPUTS[4]))


@pytest.mark.parametrize(
    ("line", "score"),
    [
        ("+--++-.", (1, 1)),
        ("-.", (1, 1)),
        ("+.", (0, 0)),
        ("-.+", (1, 0)),  # the answer stands, the whole is not a demonstration
        ("++-.", (1, 0)),
        ("+--++--", (0, 0)),
        (".", (0, 0)),
    ],
)
def test_rewards_by_hand(line, score):
    task = parity()[0]
    prompt = jnp.array(tokens(["+-+-+-="], D + 1))  # parity -; chain + - - + + -
    response = jnp.array(tokens([line], D + 1))[None]
    assert task.rewards["e2e"](prompt, response).tolist() == [[score[0]]]
    assert task.rewards["cot"](prompt, response).tolist() == [[score[1]]]


# Text


def test_text_round_trip():
    task = parity()[0]
    line = "+-=._+"
    token = task.from_text(line)
    assert task.to_text(token) == line
    np.testing.assert_array_equal(token, tokens([line], 6)[0])
    assert int(token[3]) == EOS and int(token.max()) < task.vocab_size
    every = np.arange(task.vocab_size)
    np.testing.assert_array_equal(task.from_text(task.to_text(every)), every)


def test_bad_text_names_the_text_and_the_symbols():
    task = parity()[0]
    with pytest.raises(ValueError, match=r"text='\+-x': symbols must be among _\.=\+-"):
        task.from_text("+-x")


def test_a_prompt_is_read_from_the_front_of_a_line():
    task = parity()[0]
    for line in ("+-+-+-=", "+-+-+-=+--++-."):
        assert task.to_text(task.read_prompt(line)) == "+-+-+-="
    for line in ("", "+-+-+-", "+-+-+-+=", "+-+=+-=", "=-+-+-="):
        with pytest.raises(ValueError, match=r"must begin with 6 bits and '='"):
            task.read_prompt(line)


# Evaluation


def test_first_wrong_token_of_long_responses():
    task = parity()[0]
    prompt = jnp.array(tokens(["+-+-+-="], D + 1))  # chain + - - + + -
    worked = task.demonstrate(jax.random.key(0), prompt, Hypers(p_cot=1.0)).response
    lines = ["+--++-.", "+-+++-.", "---++-.", "+--++--", "+--.", "+.", "+--++-_"]
    response = jnp.array(tokens(lines, D + 1))[None]
    scored = score(task, prompt, worked, response, jnp.zeros(response.shape[:2]))
    counted = scored.is_long & scored.departs
    assert counted.tolist() == [[False, True, True, True, True, False, True]]
    assert scored.first_wrong[counted].tolist() == [3, 1, 7, 4, 7]
