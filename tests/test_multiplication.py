"""Multiplication against Python integers: format, rewards, mixture, noise, files."""

import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from small_worlds import within_4_sigma
from tiny import tiny_experiment

from parity_jax.config import ConfigError, from_dict, to_dict
from parity_jax.evaluate import read_prompts
from parity_jax.experiment import Experiment, RunConfig
from parity_jax.hypers import Hypers
from parity_jax.models import LinearConfig
from parity_jax.runs import resolve, run_experiment
from parity_jax.tasks import MultiplicationConfig, ParityConfig
from parity_jax.tasks.multiplication import EOS, ZERO
from parity_jax.types import Prompt

ROOT = Path(__file__).parents[1]
FILES = Path(
    os.environ.get("MULTIPLICATION_FILES", ROOT / "../shared/data/multiplication")
)
N = 3
LONG, SHORT = Hypers(p_cot=1.0), Hypers(p_cot=0.0)


@functools.cache
def task(n=N):
    """The task and its compiled demonstrate."""
    task = MultiplicationConfig(n).make()
    return task, jax.jit(task.demonstrate)


def spell(number, size):
    return " ".join(f"{number:0{size}d}"[::-1])


def question(a, b, n=N):
    return f"{spell(a, n)} * {spell(b, n)}||"


def answer(a, b, n=N):
    return f"#### {spell(a * b, 2 * n)}"


def chain(a, b, n=N):
    """The long response, by Python integers."""
    parts, total = [], 0
    for i in range(n):
        product = a * (b // 10**i % 10) * 10**i
        total += product
        parts.append(spell(product, n + 1 + i))
        if 0 < i < n - 1:
            parts[-1] += f" ( {spell(total, n + 1 + i)} )"
    return f"{' + '.join(parts)} {answer(a, b, n)}"


def pairs(n, count=24, seed=0):
    """Extremes and random numbers of up to n digits."""
    top, low = 10**n - 1, 10 ** (n - 1)
    rng = np.random.default_rng(seed)
    some = [tuple(map(int, rng.integers(0, 10**n, 2))) for _ in range(count)]
    return [(top, top), (0, 0), (top, 0), (0, top), (low, top), (1, 1), *some]


def prompts(numbers, n=N):
    lines = [question(a, b, n) for a, b in numbers]
    return Prompt(np.stack([task(n)[0].read_prompt(line) for line in lines]))


def texts(task, response_BxT):
    return [task.to_text(row[row > EOS]) for row in np.asarray(response_BxT)]


def demonstrations(hypers, numbers, n=N, seed=0):
    """Text of one demonstration of every pair, in order, up to EOS."""
    one, demonstrate = task(n)
    batch = demonstrate(jax.random.key(seed), prompts(numbers, n), hypers)
    assert ((np.asarray(batch.response) == EOS).sum(1) == 1).all()
    return texts(one, batch.response)


# Demonstrations


@pytest.mark.parametrize("n", [2, 3, 9])  # no sum, one sum, the longest
def test_demonstrations_are_those_of_python_integers(n):
    numbers = pairs(n)
    expected = [chain(a, b, n) for a, b in numbers]
    assert demonstrations(LONG, numbers, n) == expected
    assert demonstrations(SHORT, numbers, n) == [answer(a, b, n) for a, b in numbers]
    one = task(n)[0]
    assert one.format.max_len == len(expected[0].split()) + 1  # and EOS
    assert one.format.short_len == len(answer(0, 0, n).split()) + 1
    assert one.prompt_len == prompts(numbers[:1], n).token.shape[1]


def test_the_format_by_hand():
    long = "5 5 5 2 + 0 5 6 3 0 ( 5 0 2 6 0 ) + 0 0 0 6 4 1 #### 5 0 2 2 5 1"
    assert question(365, 417) == "5 6 3 * 7 1 4||"
    assert demonstrations(LONG, [(365, 417)] * 30) == [long] * 30
    assert demonstrations(SHORT, [(365, 417)] * 30) == ["#### 5 0 2 2 5 1"] * 30


@pytest.mark.parametrize("n", [4, 5, 7])
def test_every_line_of_the_public_files(n):
    file = FILES / f"{n}_by_{n}_valid.txt"
    if not file.exists():
        pytest.skip(f"no {file}: set MULTIPLICATION_FILES to the folder of the files")
    one, demonstrate = task(n)
    prompt = read_prompts(str(file), one)
    batch = demonstrate(jax.random.key(0), prompt, LONG)
    whole = np.concatenate([prompt.token, batch.response], 1)
    assert texts(one, whole) == file.read_text().splitlines()


def test_sampled_prompts_are_uniform_numbers_of_n_digits():
    one = task()[0]
    token = np.asarray(one.sample_prompts(jax.random.key(0), 4096).token)
    a, b = token[:, :N] - ZERO, token[:, N + 1 : -1] - ZERO
    for digit in (a, b):
        assert digit.min() == 0 and digit.max() == 9 and digit[:, -1].min() == 1
        for value in range(1, 10):
            assert within_4_sigma(digit[:, -1] == value, 1 / 9)
            assert within_4_sigma(digit[:, 0] == value, 1 / 10)
    assert within_4_sigma(a[:, 0] == b[:, 0], 1 / 10)
    line = one.to_text(token[0])
    assert one.to_text(one.read_prompt(line)) == line


def test_the_mixture_has_its_rate_is_sorted_masked_and_right():
    one, demonstrate = task()
    prompt = one.sample_prompts(jax.random.key(1), 4096)
    batch = demonstrate(jax.random.key(2), prompt, Hypers(p_cot=0.3))
    length = np.asarray(batch.mask).sum(1)
    max_len = one.format.max_len
    assert set(length.tolist()) == {max_len, one.format.short_len}
    assert within_4_sigma(length == max_len, 0.3)
    assert (np.diff(length) <= 0).all()
    last = np.take_along_axis(np.asarray(batch.response), length[:, None] - 1, 1)
    np.testing.assert_array_equal(last, EOS)
    response_BxGxT = batch.response[:, None]
    is_long = one.is_long(response_BxGxT)[:, 0]
    np.testing.assert_array_equal(is_long, length == max_len)
    for reward in one.rewards.values():
        np.testing.assert_array_equal(jax.jit(reward)(batch.prompt, response_BxGxT), 1)


# Noise


def numbers_of(line):
    """All numbers of a demonstration: products, sums and the answer."""
    symbols = line.replace("####", " ").replace("(", " + ").replace(")", " ")
    return [int(x.replace(" ", "")[::-1]) for x in symbols.split("+") if x.strip()]


def wrong_digits(line, clean):
    pairs = zip(line.split(), clean.split(), strict=True)
    return np.array([x != y for x, y in pairs if y.isdigit()])


def test_emit_noise_is_in_the_shown_digits_only():
    numbers = pairs(N, 200)
    clean = [chain(*pair) for pair in numbers]
    for rate in (0.2, 1.0):
        noisy = demonstrations(Hypers(p_cot=1.0, emit_noise=rate), numbers)
        wrong = np.stack(list(map(wrong_digits, noisy, clean)))
        assert within_4_sigma(wrong[:, : -2 * N], rate)
        assert not wrong[:, -2 * N :].any()


def test_step_noise_goes_on_into_sums_and_answer():
    numbers = pairs(N, 200)
    clean = [chain(*pair) for pair in numbers]
    noisy = demonstrations(Hypers(p_cot=1.0, step_noise=0.2), numbers)
    wrong = np.stack(list(map(wrong_digits, noisy, clean)))
    # Digits: n + 1 of product_1; shift and n + 1 of product_2; 5 of the sum; product_3.
    computed = np.r_[0:4, 5:9, 16:20]
    assert within_4_sigma(wrong[:, computed], 0.2)
    assert not wrong[:, [4, 14, 15]].any()  # the zeros of the shifts
    for line in noisy:
        mark = line.index("####")
        *steps, answer = numbers_of(line[:mark] + "+" + line[mark:])
        first, second, total, third = steps
        assert total == (first + second) % 10**5
        assert answer == (first + second + third) % 10**6


def test_short_noise_is_one_wrong_digit():
    numbers = pairs(N, 200)
    clean = [answer(*pair) for pair in numbers]
    for rate in (0.3, 1.0):
        noisy = demonstrations(Hypers(p_cot=0.0, short_noise=rate), numbers)
        wrong = np.stack(list(map(wrong_digits, noisy, clean)))
        assert set(wrong.sum(1).tolist()) <= {0, 1}
        assert within_4_sigma(wrong.any(1), rate)
    assert wrong.any(0).all()  # every place
    other = Hypers(p_cot=1.0, short_noise=1.0)  # and touches no chain
    assert demonstrations(other, numbers) == [chain(*pair) for pair in numbers]


# Rewards


def python_e2e(a, b, line):
    body, eos, _ = line.partition(" .")
    return float(
        bool(eos)
        and body.split("####")[-1].split() == list(spell(a * b, 2 * N).split())
    )


def python_cot(a, b, line):
    line = line.rstrip("_ ")
    return float(line in (f"{chain(a, b)} .", f"{answer(a, b)} ."))


def responses(a, b):
    """Right, wrong and junk responses."""
    long, short, product = chain(a, b), answer(a, b), spell(a * b, 2 * N)
    other = spell(a * b + 1, 2 * N)
    tokens = long.split()
    changed = [
        " ".join([*tokens[:i], "7" if x != "7" else "8", *tokens[i + 1 :]])
        for i, x in enumerate(tokens)
    ]
    good = [long, short, product]
    junk = [
        f"( + {short}",
        f"#### #### {product}",
        f"#### {other} {short}",
        f"{short} {answer(a, b + 1)}",
        f"#### {other}",
        f"#### {product} 0",
        f"#### {product[2:]}",
        f"#### 0 {product}",
        f"{long[: long.index('#')]}{product}",
        f"#### _ {product}",
        "####",
        "+",
    ]
    ended = [f"{line} ." for line in good + junk + changed]
    return [
        *ended,
        long,
        ".",
        f". {short}",
        f"{short} . 5",
        f"#### . {product} .",
    ]


def test_rewards_are_those_of_plain_python():
    one = task()[0]
    numbers = [(365, 417), (999, 999), (100, 100), (507, 40), (12, 0)]
    lines = [responses(a, b) for a, b in numbers]
    tokens = np.zeros((len(lines), len(lines[0]), one.format.max_len), int)
    for i, row in enumerate(lines):
        for j, line in enumerate(row):
            token = one.from_text(line)
            assert one.to_text(token) == line
            tokens[i, j, : len(token)] = token
    for name, reference in (("e2e", python_e2e), ("cot", python_cot)):
        expected = [
            [reference(a, b, line) for line in row]
            for (a, b), row in zip(numbers, lines, strict=True)
        ]
        reward = jax.jit(one.rewards[name])(prompts(numbers), jnp.array(tokens))
        np.testing.assert_array_equal(reward, expected, err_msg=name)
        assert 0 < np.mean(expected) < 1
    expected = [
        [len(line.partition(".")[0].split()) > 2 * N + 1 for line in row]
        for row in lines
    ]
    np.testing.assert_array_equal(one.is_long(jnp.array(tokens)), expected)


# Diagnostics


def test_diagnostics_name_the_step_that_breaks():
    one = task()[0]
    right = "5 5 5 2 + 0 5 6 3 0 ( 5 0 2 6 0 ) + 0 0 0 6 4 1 #### 5 0 2 2 5 1 ."
    lines = {
        right: {},
        right.replace("( 5 0 2", "( 5 0 1"): {"sum_2"},
        right.replace("#### 5 0", "#### 9 9"): {"answer"},
        right.replace("5 5 5 2", "5 5 5 1").replace("#### 5", "#### 4"): {"product_1"},
        "#### 5 0 2 2 5 2 .": None,
    }
    tokens = np.zeros((1, len(lines), one.format.max_len), int)
    for j, line in enumerate(lines):
        token = one.from_text(line)
        tokens[0, j, : len(token)] = token
    scores = one.diagnostics(prompts([(365, 417)]), jnp.array(tokens))
    digits, everywhere = scores.pop("digits")
    np.testing.assert_allclose(digits[0], [1, 1, 4 / 6, 5 / 6, 5 / 6], rtol=1e-6)
    assert np.asarray(everywhere).all()
    names = ["product_1", "product_2", "sum_2", "product_3", "answer"]
    assert list(scores) == [f"steps/{name}" for name in names]
    for j, broken in enumerate(lines.values()):
        shown = {name: bool(scores[f"steps/{name}"][1][0, j]) for name in names}
        wrong = {n for n in names if shown[n] and not scores[f"steps/{n}"][0][0, j]}
        assert wrong == set(broken or ())
        until = names.index(*broken) + 1 if broken else len(names)
        until = 0 if broken is None else until
        assert list(shown.values()) == [k < until for k in range(len(names))]


# Text and files


def test_bad_text():
    for text, said in (
        ("1 2 x 3", "symbol 'x'"),
        ("12 * 34||", "symbol '12'"),
        ("1 2  * 3 4||", "one space"),
        ("1 2 * 3 4 || 5", "'||' by none"),
    ):
        with pytest.raises(ValueError) as info:
            task()[0].from_text(text)
        assert said in str(info.value)


def test_a_bad_line_of_an_eval_file_is_named(tmp_path):
    good = [question(365, 417) + chain(365, 417), question(100, 999)]
    file = tmp_path / "held_out.txt"
    for line, said in (
        ("1 2 3||1", "must begin with two numbers"),
        ("1 2 3 * 4 5 6 * 7 8 9||", "must begin with two numbers"),
        ("1 2 * 4 5 6||", "number '1 2' must have 3 digits"),
        ("1 2 3 * 4 5 6 7||", "number '4 5 6 7' must have 3 digits"),
        ("1 2 + * 4 5 6||", "number '1 2 +' must have 3 digits"),
        ("1 2 3 * 4 5 a||", "symbol 'a'"),
        (question(365, 417) + answer(365, 418), "#### 5 0 2 2 5 1"),
        (question(365, 417) + "5 5", "must end with the product"),
    ):
        file.write_text("\n".join([*good, line, ""]))
        with pytest.raises(ConfigError) as info:
            read_prompts(str(file), task()[0])
        assert info.value.name == "eval_file"
        assert "line 3: " in str(info.value) and said in str(info.value)


def experiment(**overrides):
    return tiny_experiment(task=MultiplicationConfig(2), **overrides)


def test_a_bad_eval_file_stops_the_run_before_it_writes(tmp_path):
    file = tmp_path / "held_out.txt"
    for content, said in (
        (None, "cannot be read"),
        ("", "at least one prompt"),
        (question(365, 417), "line 1: number '5 6 3' must have 2 digits"),
    ):
        if content is not None:
            file.write_text(content)
        with pytest.raises(ConfigError) as info:
            run_experiment(experiment(eval_file=str(file)), tmp_path / "run")
        assert info.value.name == "eval_file" and said in str(info.value)
        assert not (tmp_path / "run").exists()


# Config


def test_what_multiplication_refuses():
    for num_digits in (1, 10):
        with pytest.raises(ConfigError, match=r"num_digits=1.*in \[2, 9\]"):
            MultiplicationConfig(num_digits)
    leap = RunConfig(hypers=Hypers(p_leap=0.1))
    with pytest.raises(ConfigError, match=r"runs\.a\.hypers\.p_leap=0\.1"):
        resolve(experiment(runs=FrozenDict({"a": leap})))
    axis = RunConfig(axes=FrozenDict({"p_leap": (0.0, 0.2)}))
    with pytest.raises(ConfigError, match=r"runs\.a\.axes\.p_leap=0\.2"):
        resolve(experiment(runs=FrozenDict({"a": axis})))
    with pytest.raises(ConfigError, match=r"task\.kind='multiplication'"):
        resolve(experiment(model=LinearConfig()))


def test_a_task_of_a_run_may_be_another_one():
    run = RunConfig(task=ParityConfig(4))
    both = experiment(runs=FrozenDict({"a": RunConfig(), "b": run}))
    assert from_dict(Experiment, to_dict(both)) == both
    assert [x.task for x in resolve(both).values()] == [both.task, run.task]
