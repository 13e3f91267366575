"""Rows of text: a question, its worked solution, its answer; read from files."""

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from parity_jax.config import ConfigError, expanded, require, unique

Adapter = Literal["plain", "gsm8k", "math"]


class Row(NamedTuple):
    """One problem."""

    prompt: str
    solution: str  # the work, without the answer behind it
    answer: str


class Splits(NamedTuple):
    """What is trained on, and what is not."""

    train: list[Row]
    test: list[Row]

    @property
    def rows(self) -> list[Row]:
        """All rows, those of training first."""
        return self.train + self.test


def optional(module: str, needed_by: str) -> Any:
    """A package of the extra `text`; ConfigError says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        allowed = f"needs the package {module}: pip install parity-jax[text]"
        raise ConfigError("task", needed_by, allowed) from None


def read_rows(field: str, path: str, adapter: Adapter) -> list[Row]:
    """The rows of a .jsonl or .parquet file; ConfigError names a bad one."""
    read, rows = ADAPTERS[adapter], []
    for number, record in records(field, path):
        try:
            rows.append(read(record))
        except ValueError as error:
            raise ConfigError(field, path, f"row {number}: {error}") from None
    if not rows:
        raise ConfigError(field, path, "must have at least one row")
    return rows


def records(field: str, path: str) -> Iterable[tuple[int, dict[str, Any]]]:
    """The rows of a file with their numbers, from 1, as they stand there."""
    file = expanded(field, path)
    allowed = "must be a file, which can be read twice"  # no pipe
    require(file.is_file() or not file.exists(), field, path, allowed)
    try:
        file.stat()  # pyarrow's error has no reason
        if file.suffix == ".parquet":
            table = optional("pyarrow.parquet", f"the parquet file {path}")
            try:
                found = table.read_table(file).to_pylist()
            except ValueError as error:  # pyarrow's own are
                told = f"cannot be read: {str(error).splitlines()[0]}"
                raise ConfigError(field, path, told) from None
            yield from enumerate(found, 1)
            return
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, parsed(line, f"row {number}", field, path)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(field, path, f"cannot be read: {reason}") from None


def parsed(line: str, where: str, field: str, path: str) -> dict[str, Any]:
    """A line of JSON as a mapping."""
    try:
        value = json.loads(line, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ConfigError(field, path, f"{where}: no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(field, path, f"{where}: must be a mapping")
    return value


def texts_of(record: dict[str, Any], *names: str) -> list[str]:
    """Fields of a record; ValueError for one that is missing, empty or no text."""
    for name in names:
        value = record.get(name)
        if not isinstance(value, str) or not value.strip():
            told = "missing" if name not in record else repr(value)[:40]
            raise ValueError(f"field {name!r} must be a text, not {told}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"field {name!r} has half a surrogate pair") from None
    return [record[name].strip() for name in names]


def plain_row(record: dict[str, Any]) -> Row:
    """prompt, solution and answer."""
    return Row(*texts_of(record, "prompt", "solution", "answer"))


def gsm8k_row(record: dict[str, Any]) -> Row:
    """question and answer of GSM8K, whose calculator marks <<..>> are taken out."""
    question, worked = texts_of(record, "question", "answer")
    solution, mark, answer = worked.rpartition("####")
    if not mark or not answer.strip():
        raise ValueError("field 'answer' must end with #### and the answer")
    return Row(question, re.sub(r"<<.*?>>", "", solution).strip(), answer.strip())


def math_row(record: dict[str, Any]) -> Row:
    r"""problem and solution of MATH, which puts the answer into its last box."""
    question, solution = texts_of(record, "problem", "solution")
    answer = last_boxed(solution)
    if answer is None:
        raise ValueError("field 'solution' must have its answer in \\boxed{..}")
    return Row(question, solution, answer)


BOX = re.compile(r"\\(?:boxed|fbox)\s*(?={)|\\boxed\s+")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # or an escaped one, which opens nothing


def last_boxed(text: str) -> str | None:
    r"""What the last box of a text holds; None if there is none that ends.

    Some rows of MATH have \fbox{..}, and some \boxed without braces up to the $.
    """
    boxes, depth = [*BOX.finditer(text)], 0
    rest = text[boxes[-1].end() :] if boxes else ""
    if not rest.startswith("{"):
        return rest.partition("$")[0].strip() or None
    for sign in BRACE.finditer(rest):
        depth += {"{": 1, "}": -1}.get(sign.group(), 0)
        if depth == 0:
            return rest[1 : sign.start()].strip() or None
    return None


ADAPTERS: dict[str, Callable[[dict[str, Any]], Row]] = {
    "plain": plain_row,
    "gsm8k": gsm8k_row,
    "math": math_row,
}


def num_overlapping(splits: Splits) -> int:
    """Test rows whose question is among those of training, up to case and blanks."""

    def key(row: Row) -> str:
        return " ".join(row.prompt.lower().split())

    seen = {key(row) for row in splits.train}
    return sum(key(row) in seen for row in splits.test)


def digest_of(rows: Sequence[Row], *more: str) -> str:
    """sha256 of rows and of what else decides the tokens."""
    content = json.dumps([*map(list, rows), *more], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
