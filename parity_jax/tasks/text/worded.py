"""Parity in words: coins, switches, people who change their minds.

A question has d people, each of whom does or does not change the state; the solution
says the state after each of them, the answer is the last one. State 0 is the one at the
start, so that the state after person l is the running parity t_l.
"""

from typing import Literal, NamedTuple

import numpy as np

from parity_jax.config import require
from parity_jax.tasks.text.rows import Row

Wording = Literal["coin", "switch", "mind", "mixed"]
NAMES = [
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eva",
    "Finn",
    "Gus",
    "Hana",
    "Ivo",
    "Jana",
    "Kai",
    "Lea",
    "Max",
    "Nora",
    "Otto",
    "Pia",
    "Quinn",
    "Rosa",
    "Sam",
    "Tara",
    "Udo",
    "Vera",
    "Will",
    "Xenia",
    "Yann",
    "Zoe",
    "Amir",
    "Bela",
    "Cora",
    "Dino",
    "Emil",
    "Fay",
    "Greta",
    "Hugo",
    "Iris",
    "Jon",
    "Kira",
    "Luis",
    "Mona",
    "Nils",
    "Olga",
    "Paul",
    "Rita",
    "Sven",
    "Tess",
    "Ugo",
    "Vida",
    "Wim",
    "Yara",
    "Zeno",
    "Alba",
    "Boris",
    "Carl",
    "Dora",
    "Enzo",
    "Flora",
    "Gil",
    "Heidi",
    "Ines",
    "Juri",
    "Karl",
    "Lola",
    "Mila",
    "Noah",
]


class Words(NamedTuple):
    """How a wording tells its story; `{}` is a name."""

    begin: str
    change: tuple[str, ...]
    stay: tuple[str, ...]
    aside: tuple[str, ...]  # what changes nothing, whoever does it
    ask: str
    states: tuple[str, str]


WORDS = {
    "coin": Words(
        "A coin shows heads.",
        ("{} flips it.", "{} turns it."),
        ("{} keeps it.", "{} leaves it."),
        ("{} sees it.", "{} likes it."),
        "The coin shows",
        ("heads", "tails"),
    ),
    "switch": Words(
        "A lamp is on.",
        ("{} switches it.", "{} toggles it."),
        ("{} keeps it.", "{} leaves it."),
        ("{} sees it.", "{} likes it."),
        "The lamp is",
        ("on", "off"),
    ),
    "mind": Words(
        "The vote is yes.",
        ("{} reverses it.", "{} overturns it."),
        ("{} accepts it.", "{} confirms it."),
        ("{} reads it.", "{} hears it."),
        "The vote is",
        ("yes", "no"),
    ),
}


def worded_rows(
    num_rows: int,
    num_bits: int,
    wording: Wording,
    num_asides: int,
    named: bool,
    seed: int,
) -> list[Row]:
    """So many independent questions; of few people some are drawn again."""
    people = num_bits + num_asides
    allowed = (
        f"num_bits + distractors must be at most {len(NAMES)}, the names there are"
    )
    require(people <= len(NAMES), "num_bits", num_bits, allowed)
    rng = np.random.default_rng(seed)
    return [
        worded_row(rng, num_bits, wording, num_asides, named) for _ in range(num_rows)
    ]


def worded_row(
    rng: np.random.Generator,
    num_bits: int,
    wording: Wording,
    num_asides: int,
    named: bool,
) -> Row:
    """One question about num_bits + num_asides different people."""
    kind = rng.choice([*WORDS]) if wording == "mixed" else wording
    words, people = WORDS[kind], num_bits + num_asides
    names = rng.permutation(NAMES)[:people]
    is_aside = rng.permutation(people) < num_asides
    bits = rng.integers(2, size=people)
    sentences, steps, state = [words.begin], [], 0
    for name, bit, aside in zip(names, bits, is_aside, strict=True):
        kinds = words.aside if aside else (words.stay, words.change)[bit]
        sentences.append(kinds[rng.integers(len(kinds))].format(name))
        if not aside:
            state ^= int(bit)
            steps.append((words.states[state], name))
    texts = [f"{state} after {name}." if named else state for state, name in steps]
    solution = " ".join([*texts[:-1], steps[-1][0]])
    return Row(" ".join([*sentences, words.ask]), solution, steps[-1][0])
