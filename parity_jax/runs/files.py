"""Small files: written whole or not at all, checked when they are read back."""

import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from parity_jax.config import (
    ConfigError,
    MissingCodeError,
    RunError,
    from_dict,
    is_finite,
    unique,
)
from parity_jax.hosts import is_first

LOOKS = 20  # at a lock before somebody else has it, within a fifth of a second


class CodeNotFoundError(RunError):
    """A file that names code of the user's own, which is not found from here."""


@contextmanager
def lock(directory: Path, wait: bool = False) -> Iterator[None]:
    """Hold the directory for this process; RunError if another process holds it.

    wait    until the other process lets go of it

    The kernel lets go of the lock when the process ends, however it ends. Of several
    processes that train together the first one holds it.
    """
    if not is_first():
        yield
        return
    with (directory / ".lock").open("a+") as file:
        if wait:
            fcntl.flock(file, fcntl.LOCK_EX)
        elif not took(file):
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise RunError(f"{directory}: in use by {holder}")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def took(file: IO[str]) -> bool:
    """Whether this process holds a file now; those that only look let go at once."""
    for _ in range(LOOKS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.01)
    return False


def is_locked(directory: Path) -> bool:
    """Whether a process holds the directory now."""
    file = directory / ".lock"
    if not is_plain(file):
        return False
    with file.open() as held:
        try:
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def stamp_of(path: Path) -> tuple[int, int] | None:
    """When a file was written, in nanoseconds, and its size; None without one."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_size


def write_bytes(path: Path, content: bytes) -> None:
    """Write atomically: the file is either the old one or the whole new one.

    Of several processes that train together only the first one does.
    """
    if not is_first():
        return
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; numbers that JSON does not have are an error."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A directory to fill, which is at `path` when all of it is written, or never."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part.", dir=path.parent) as own:
        part = Path(own) / path.name
        part.mkdir()
        yield part
        part.rename(path)


def is_plain(path: Path) -> bool:
    """Whether a file is there; RunError for a pipe or a device, which could be waited
    for without end.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise RunError(f"{path}: must be a file")
    return path.exists()


def read_json(path: Path) -> Any:
    """What a JSON file holds; RunError if it is missing or damaged."""
    try:
        is_plain(path)
        text = path.read_text()
        value = json.loads(
            text,
            object_pairs_hook=unique,
            parse_constant=refuse_number,
            parse_float=finite,
            parse_int=whole,
        )
        if "\\ud" in text.lower():  # half a surrogate pair, perhaps
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except FileNotFoundError:
        raise RunError(f"{path}: missing") from None
    except NotADirectoryError:
        raise RunError(f"{path}: missing") from None
    except RecursionError:
        raise RunError(f"{path}: damaged: nested too deeply") from None
    except ValueError as error:  # of the text encoding or of JSON
        raise RunError(f"{path}: damaged: {error}") from None


def refuse_number(text: str) -> float:
    """ValueError: JSON has no NaN and no infinite numbers."""
    raise ValueError(f"{text} is not a number of JSON")


def finite(text: str) -> float:
    """A number of JSON; ValueError for one that is beyond all floats."""
    return float(text) if is_finite(float(text)) else refuse_number(text)


def whole(text: str) -> int:
    """A whole number of JSON; ValueError for one that is beyond all floats."""
    return int(text) if is_finite(int(text)) else int(refuse_number(text))


def read_text(path: Path) -> str:
    """What a text file holds; RunError if it is not UTF-8."""
    is_plain(path)
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise RunError(f"{path}: damaged: {error}") from None


def read_as(kind: Any, path: Path) -> Any:
    """A JSON file as a dataclass, strictly; RunError if it is not of this form."""
    try:
        return from_dict(kind, read_json(path))
    except MissingCodeError as error:
        told = "type the command in the folder of that code, or set PYTHONPATH to it"
        raise CodeNotFoundError(f"{path}: {error}; {told}") from None
    except ConfigError as error:
        raise RunError(f"{path}: damaged: {error}") from None
