"""parity-jax list: names and first lines of experiments, none of which is executed."""

import os
import signal
from pathlib import Path

import pytest

from parity_jax.cli import list as command
from parity_jax.cli import main

ROOT = Path(__file__).parents[1]
FILES = {
    "b_plain.py": '"""Said first.\n\nAnd more."""\ndef get_config(): ...\n',
    "a_imports.py": '"""Imported."""\nfrom tiny_run import base as get_config\n',
    "c_assigned.py": "get_config = print\n",
    "d_raises.py": '"""Never executed."""\nraise SystemExit\ndef get_config(): ...\n',
    "e_warns.py": '"""Warns."""\nx = "\\d"\ndef get_config(): ...\n',
    "f_broken.py": '"""Broken."""\n\ndef get_config(:\n',
    "g_bytes.py": b"\xff\xfe = 3",
    "h_library.py": '"""No experiment."""\ndef other():\n    def get_config(): ...\n',
    "i_text.txt": "def get_config(): ...",
}


@pytest.fixture
def folder(tmp_path):
    os.mkfifo(tmp_path / "g_pipe.py")  # it would be waited for without end
    for name, text in FILES.items():
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.filterwarnings("error")
def test_a_line_for_each_experiment(folder, capsys):
    """A file that cannot be read is named, and the others are still listed."""
    assert main.run(["list", str(folder)]) == 0
    said = capsys.readouterr()
    told = dict(line.split(None, 1) for line in said.out.splitlines())
    names = [name for name in FILES if name[0] in "abcdefg"]
    assert [*told] == sorted([*names, "g_pipe.py"])
    assert told["g_pipe.py"].endswith("g_pipe.py: must be a file)")
    assert told["b_plain.py"] == "Said first."
    assert told["a_imports.py"] == "Imported."
    assert told["c_assigned.py"] == "(no docstring)"
    assert told["d_raises.py"] == "Never executed."
    assert told["f_broken.py"].startswith("(cannot be read: ")
    assert told["f_broken.py"].endswith(", line 3)")
    assert told["g_bytes.py"].startswith("(cannot be read: ")
    assert said.err == ""


def test_a_file_too_deep_for_python_hides_no_other(folder, capsys):
    (folder / "a_deep.py").write_text("x = " + "-" * 200_000 + "1")
    assert main.run(["list", str(folder)]) == 0
    said = capsys.readouterr()
    told = dict(line.split(None, 1) for line in said.out.splitlines())
    assert told["a_deep.py"] == "(cannot be read: nested too deeply)"
    assert told["b_plain.py"] == "Said first." and said.err == ""


def test_the_lab_book(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main.run(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    files = {p.name for p in (ROOT / "experiments").glob("*.py")}
    files -= {"lab.py", "lab_text.py"}
    assert {line.split()[0] for line in lines} == files
    assert all(line.split(None, 1)[1][0].isupper() for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "DIR='nowhere': must be a directory"),
        (["empty"], "DIR='empty': must hold an experiment"),
        (["empty", "empty"], "unrecognized arguments: empty"),
    ],
)
def test_a_bad_argument_costs_one_line(
    arguments, message, tmp_path, monkeypatch, capsys
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main.run(["list", *arguments]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert said.out == "" and line.startswith("error: ") and message in line


def test_a_signal_stops_it(folder, monkeypatch, capsys):
    monkeypatch.setattr(
        command, "described", lambda path: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert main.run(["list", str(folder)]) == 75
    assert capsys.readouterr().err.startswith("error: stopped")
