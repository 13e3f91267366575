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
from small_worlds import within_4_sigma

from parity_jax.config import ConfigError
from parity_jax.hypers import Hypers
from parity_jax.tasks import ParityConfig
from parity_jax.tasks.parity import EOS, token_signs
from parity_jax.types import Prompt

D, COPIES = 6, 64
LONG, SHORT, LEAP = Hypers(p_cot=1.0), Hypers(p_cot=0.0), Hypers(p_cot=0.0, p_leap=1.0)
LEAPS = (1, 2, 4, 6)  # all steps, a divisor of D, none, D itself


def text(signs):
    return "".join("+" if s > 0 else "-" for s in signs)


@functools.cache
def parity(leap=1, d=D):
    """The task and its compiled demonstrate."""
    task = ParityConfig(d, leap).make()
    return task, jax.jit(task.demonstrate)


def inputs(d=D):
    return list(itertools.product([1, -1], repeat=d))


def tokens(lines, length):
    """Lines, padded to a length, as tokens (test_text_round_trip ties the two)."""
    return np.array([["_.=+-".index(c) for c in t.ljust(length, "_")] for t in lines])


def prompts(d=D):
    """Every input; of D bits, COPIES times over."""
    lines = [text(signs) + "=" for signs in inputs(d)]
    return Prompt(tokens(lines * (COPIES if d == D else 1), d + 1))


def running(signs):
    return list(accumulate(signs, mul))


def demonstrations(hypers, leap=1, seed=0):
    """Text of one demonstration of every input, COPIES times over."""
    task, demonstrate = parity(leap)
    batch = demonstrate(jax.random.key(seed), prompts(), hypers)
    np.testing.assert_array_equal(batch.prompt.token, prompts().token)
    lines = [task.to_text(row).rstrip("_") for row in np.asarray(batch.response)]
    return np.array(lines).reshape(COPIES, -1)


# Demonstrations


def test_long_and_short_demonstrations_of_all_inputs():
    expected = [text(running(signs)) + "." for signs in inputs()]
    assert (demonstrations(LONG) == np.array(expected)).all()
    expected = [text([math.prod(signs)]) + "." for signs in inputs()]
    assert (demonstrations(SHORT) == np.array(expected)).all()


def test_leap_demonstrations_of_all_inputs():
    for leap in LEAPS:
        ends = [n for n in range(1, D + 1) if n % leap == 0 or n == D]
        expected = [
            text([math.prod(signs[:n]) for n in ends]) + "." for signs in inputs()
        ]
        assert (demonstrations(LEAP, leap) == np.array(expected)).all()


def test_sampled_prompts_are_uniform_bits_and_a_separator():
    task = parity()[0]
    token = np.asarray(task.sample_prompts(jax.random.key(0), 4096).token)
    assert token.shape == (4096, task.prompt_len) and task.prompt_len == D + 1
    sign = np.asarray(token_signs(token))
    np.testing.assert_array_equal(np.abs(sign)[:, :D], 1)
    assert {task.to_text(row[-1:]) for row in token[:8]} == {"="}
    for i, j in itertools.combinations(range(D), 2):
        assert within_4_sigma(sign[:, i] == sign[:, j], 0.5)
    for i in range(D):
        assert within_4_sigma(sign[:, i] > 0, 0.5)


def test_the_mixture_has_its_rates_is_sorted_and_masked_through_eos():
    task, demonstrate = parity(2)
    hypers = Hypers(p_cot=0.3, p_leap=0.2)
    batches = [demonstrate(jax.random.key(seed), prompts(), hypers) for seed in (2, 3)]
    length = np.asarray(batches[0].mask).sum(1) - 1
    assert set(length.tolist()) == {D, D // 2, 1}
    for kind, rate in ((D, 0.3), (D // 2, 0.2), (1, 0.5)):
        assert within_4_sigma(length == kind, rate)
    assert (np.diff(length) <= 0).all()  # the longest first
    for row, mask in zip(batches[0].response[::16], batches[0].mask[::16], strict=True):
        line = task.to_text(row)
        end = line.index(".")
        assert set(line[end + 1 :]) <= {"_"}
        assert np.asarray(mask).tolist() == [i <= end for i in range(D + 1)]
    num_long = [int((batch.mask.sum(1) == D + 1).sum()) for batch in batches]
    assert num_long[0] != num_long[1]  # independent draws, not a fixed count


# Noise


def chain_signs(leap=1, **noise):
    """Input signs, shown signs and those without noise of many chains, NxD and NxM."""
    kind = {"p_cot": 1.0} if leap == 1 else {"p_cot": 0.0, "p_leap": 1.0}
    batch = parity(leap)[1](jax.random.key(4), prompts(), Hypers(**kind, **noise))
    shown = np.asarray(token_signs(batch.response))
    length = int(batch.mask[0].sum()) - 1
    assert (shown[:, length:] == 0).all() and (shown[:, :length] != 0).all()
    x = np.asarray(token_signs(prompts().token[:, :D]))
    ends = [n for n in range(1, D + 1) if n % leap == 0 or n == D]
    return x, shown[:, :length], np.stack([x[:, :n].prod(1) for n in ends], 1)


def test_certain_noise_flips_every_intermediate_token():
    for leap in (1, 2, 4):
        _, shown, clean = chain_signs(leap, emit_noise=1.0)
        np.testing.assert_array_equal(shown[:, :-1], -clean[:, :-1])
        np.testing.assert_array_equal(shown[:, -1], clean[:, -1])


def test_certain_step_noise_propagates():
    for leap in (1, 2, 4):
        _, shown, clean = chain_signs(leap, step_noise=1.0)
        last = clean.shape[1] - 1
        for j in range(last + 1):  # the number of wrong steps so far; the last is clean
            flips = min(j + 1, last)
            np.testing.assert_array_equal(shown[:, j], clean[:, j] * (-1) ** flips)


def test_emit_noise_rate_and_clean_answer():
    for leap in (1, 2):
        _, shown, clean = chain_signs(leap, emit_noise=0.3)
        wrong = shown != clean
        assert not wrong[:, -1].any()
        for j in range(wrong.shape[1] - 1):
            assert within_4_sigma(wrong[:, j], 0.3)
        if leap == 1:  # shown tokens are flipped one by one
            assert within_4_sigma(wrong[:, 0] & wrong[:, 1], 0.3**2)


def test_step_noise_rate_and_clean_last_step():
    x, shown, _ = chain_signs(step_noise=0.3)
    before = np.concatenate([np.ones_like(shown[:, :1]), shown[:, :-1]], 1)
    wrong_step = shown != before * x
    assert not wrong_step[:, -1].any()
    for j in range(D - 1):
        assert within_4_sigma(wrong_step[:, j], 0.3)
    assert within_4_sigma(wrong_step[:, 0] & wrong_step[:, 1], 0.3**2)
    wrong_answer = shown[:, -1] != x.prod(1)
    assert within_4_sigma(wrong_answer, (1 - (1 - 2 * 0.3) ** (D - 1)) / 2)


def test_noise_of_one_kind_leaves_the_others_alone():
    clean = demonstrations(SHORT)
    swap = str.maketrans("+-", "-+")
    flipped = demonstrations(Hypers(p_cot=0.0, short_noise=1.0))
    assert flipped.tolist() == [[line.translate(swap) for line in x] for x in clean]
    noisy = demonstrations(Hypers(p_cot=0.0, short_noise=0.2))
    assert within_4_sigma(noisy != clean, 0.2)
    noisy = Hypers(p_cot=1.0, short_noise=1.0)
    assert (demonstrations(noisy) == demonstrations(LONG)).all()
    noisy = Hypers(p_cot=0.0, emit_noise=1.0, step_noise=1.0)
    assert (demonstrations(noisy) == clean).all()


# Rewards


def e2e(signs, line):
    body, eos, _ = line.partition(".")
    return float(bool(eos) and body[-1:] == text([math.prod(signs)]))


def cot(signs, line):
    answers = (text(running(signs)) + ".", text([math.prod(signs)]) + ".")
    return float(line in [answer.ljust(len(signs) + 1, "_") for answer in answers])


def is_long(line):
    return line[0] != "." and line[1] != "."


def test_rewards_of_all_responses():
    """Every one of the 5^5 token sequences to every prompt of 4 bits."""
    task, d = ParityConfig(4).make(), 4
    lines = ["".join(symbols) for symbols in itertools.product("_.=+-", repeat=d + 1)]
    shape = (2**d, len(lines), d + 1)
    response = jnp.array(np.broadcast_to(tokens(lines, d + 1), shape))
    for name, reference in (("e2e", e2e), ("cot", cot)):
        expected = [[reference(signs, line) for line in lines] for signs in inputs(d)]
        reward = jax.jit(task.rewards[name])(prompts(d), response)
        np.testing.assert_array_equal(reward, expected)
        assert 0 < np.mean(expected) < 1
    np.testing.assert_array_equal(
        task.is_long(response[:1])[0], [is_long(line) for line in lines]
    )


def test_rewards_by_hand():
    """Of what enumeration holds, the kinds that a mistake would tell apart."""
    task = parity()[0]
    prompt = Prompt(tokens(["+-+-+-="], D + 1))  # parity -; chain + - - + + -
    scores = {
        "+--++-.": (1, 1),
        "-.": (1, 1),
        "+.": (0, 0),
        "-.+": (1, 0),  # the answer stands, the whole is not a demonstration
        "-..+": (1, 0),
        "+.-.": (0, 0),
        "++-.": (1, 0),
        "+--+.": (0, 0),  # truncated
        "+--++--": (0, 0),  # no EOS
        "+--++=.": (0, 0),
        "_-.": (1, 0),  # PAD and SEP inside
        "=-.": (1, 0),
        "-=.": (0, 0),
        ".": (0, 0),
        ".+--++-": (0, 0),
    }
    response = jnp.array(tokens(scores, D + 1))[None]
    rewards = [task.rewards[name] for name in ("e2e", "cot")]
    both = jax.jit(lambda *args: [reward(*args)[0] for reward in rewards])
    found = np.transpose(both(prompt, response))
    np.testing.assert_array_equal(found, list(scores.values()))
    # What to hold an answer against; leaps of 4 are a second way to work it out.
    for leap, worked in ((1, ["+--++-."]), (4, ["+--++-.", "+-.____"])):
        solution = jax.device_get(jax.jit(parity(leap)[0].solution)(prompt))
        assert [task.to_text(row) for row in solution.worked[0]] == worked
        assert task.to_text(solution.short[0]) == "-._____"


# Text


def test_eps_2_is_of_full_chains_only():
    """A right leap chain would be an error of the second step half of the time."""
    task = ParityConfig(3, leap=2).make()
    prompt = task.sample_prompts(jax.random.key(0), 4)
    assert task.diagnostics(prompt, task.solution(prompt).worked) == {}


def test_eps_2_is_of_those_that_begin_right_and_go_on():
    """x = + - +: t = + - -; of six responses the last three count, one of them errs."""
    task, _ = parity(d=3)
    lines = ["+.", "-+.", "_", "+--.", "+-+.", "++-."]
    response = jnp.array(tokens(lines, 4))[None]
    found, counts = task.diagnostics(Prompt(tokens(["+-+="], 4)), response)["eps_2"]
    assert counts.tolist() == [[False, False, False, True, True, True]]
    assert found[counts].tolist() == [False, False, True]


def test_text_round_trip():
    task = parity()[0]
    line = "+-=._+"
    token = task.from_text(line)
    assert task.to_text(token) == line
    np.testing.assert_array_equal(token, tokens([line], 6)[0])
    assert int(token[3]) == EOS and int(token.max()) < task.vocab_size
    every = np.arange(task.vocab_size)
    np.testing.assert_array_equal(task.from_text(task.to_text(every)), every)
    with pytest.raises(ValueError, match=r"symbol 'x': symbols must be among _\.=\+-"):
        task.from_text("+-x")


def test_a_prompt_is_read_from_the_front_of_a_line():
    task = parity()[0]
    for line in ("+-+-+-=", "+-+-+-=+--++-.", "+-+-+-"):
        assert task.to_text(task.read_prompt(line)) == "+-+-+-="
    for line in ("", "+-+-+", "+-+-+-+", "+-+-+-+=", "+-+=+-=", "=-+-+-="):
        with pytest.raises(ValueError, match="must begin with 6 bits"):
            task.read_prompt(line)


def test_a_leap_over_all_bits_is_no_chain():
    """It would be told from a short answer by nothing."""
    ParityConfig(4, leap=4).check(Hypers())
    with pytest.raises(ConfigError, match=r"^p_leap=0.5: must be 0 with leap=num_bi"):
        ParityConfig(4, leap=4).check(Hypers(p_leap=0.5))


def test_leap_chains_that_are_full_chains_are_refused():
    """p_leap would be another name of p_cot: members would secretly be one."""
    with pytest.raises(ConfigError, match=r"p_leap=0\.3: must be 0 with leap=1"):
        ParityConfig(4).check(Hypers(p_leap=0.3))
    ParityConfig(4, leap=2).check(Hypers(p_leap=0.3))
