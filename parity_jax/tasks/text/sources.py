"""Where rows come from: files, reasoning-gym, or a generator of worded parity."""

from dataclasses import dataclass
from typing import Any, ClassVar

from parity_jax.config import MAX_SIZE, Configured, require, require_positive
from parity_jax.tasks.text.rows import Adapter, Row, Splits, optional, read_rows
from parity_jax.tasks.text.worded import Wording, worded_rows

SEEDS = f"must be in [0, {MAX_SIZE}]"


class SourceConfig(Configured):
    """A frozen dataclass that names or makes rows."""

    def splits(self) -> Splits:
        """The rows of training and of test; the same at every call."""
        raise NotImplementedError

    def files(self) -> tuple[str, ...]:
        """What `splits` reads: it is called again when one of them has changed."""
        return ()


@dataclass(frozen=True)
class FileSource(SourceConfig):
    """JSONL or parquet files: of one's own, of GSM8K or of MATH.

    plain   prompt, solution, answer
    gsm8k   question, answer (calculator marks are taken out)
    math    problem, solution (the answer is in its last boxed expression)
    """

    kind: ClassVar[str] = "file"
    train_file: str = ""
    test_file: str = ""  # empty: the last num_test rows of train_file
    num_test: int = 0  # test rows that are used; 0: all of test_file
    adapter: Adapter = "plain"

    def files(self) -> tuple[str, ...]:
        return tuple(name for name in (self.train_file, self.test_file) if name)

    def splits(self) -> Splits:
        require(bool(self.train_file), "train_file", "", "must name a file")
        num = self.num_test
        require(num >= 0, "num_test", num, "must be 0 or positive")
        train = read_rows("train_file", self.train_file, self.adapter)
        if self.test_file:
            test = read_rows("test_file", self.test_file, self.adapter)
            allowed = f"must be at most {len(test)}, the rows of test_file"
            require(num <= len(test), "num_test", num, allowed)
            return Splits(train, test[: num or None])
        allowed = "must have at least two rows without test_file"
        require(len(train) > 1, "train_file", self.train_file, allowed)
        allowed = f"must be in [1, {len(train) - 1}] without test_file"
        require(1 <= num < len(train), "num_test", num, allowed)
        return Splits(train[:-num], train[-num:])


@dataclass(frozen=True)
class GsmSymbolicSource(SourceConfig):
    """Word problems from the templates of reasoning-gym's gsm_symbolic."""

    kind: ClassVar[str] = "gsm_symbolic"
    num_train: int = 1024
    num_test: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "num_train", "num_test")
        require(0 <= self.seed <= MAX_SIZE, "seed", self.seed, SEEDS)

    def splits(self) -> Splits:
        gym = optional("reasoning_gym", "gsm_symbolic")
        size = self.num_train + self.num_test
        made = gym.create_dataset("gsm_symbolic", size=size, seed=self.seed)
        rows = [symbolic_row(made[i]) for i in range(size)]
        return Splits(rows[: self.num_train], rows[self.num_train :])


def symbolic_row(record: dict[str, Any]) -> Row:
    """A row of gsm_symbolic; its instruction on how to answer is left out."""
    question = record["question"].partition("Give the result")[0].strip()
    solution = record["metadata"]["answer_cot"].rpartition("####")[0].strip()
    return Row(question, solution, record["answer"])


@dataclass(frozen=True)
class WordedSource(SourceConfig):
    """Parity in words: d people do or do not change something that has two states."""

    kind: ClassVar[str] = "worded"
    num_bits: int = 10  # d, people of a question
    wording: Wording = "coin"
    distractors: int = 0  # sentences of a question that change nothing
    named: bool = False  # each step of a solution names its person
    num_train: int = 20_000
    num_test: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "num_bits", "num_train", "num_test")
        require(0 <= self.seed <= MAX_SIZE, "seed", self.seed, SEEDS)
        few = 0 <= self.distractors <= self.num_bits
        allowed = f"must be in [0, num_bits={self.num_bits}]"
        require(few, "distractors", self.distractors, allowed)

    def splits(self) -> Splits:
        made = worded_rows(
            self.num_train + self.num_test,
            self.num_bits,
            self.wording,
            self.distractors,
            self.named,
            self.seed,
        )
        return Splits(made[: self.num_train], made[self.num_train :])
