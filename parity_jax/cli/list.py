"""The experiments of a folder: each file's name and what it is, a line each.

parity-jax list [DIR=experiments] [--debug]

An experiment is a Python file that defines get_config; what is said is the first line
of its docstring. Files are read, never executed; one that cannot be read is named.
Exit code 0: done, 2: a bad argument.
"""

import ast
import warnings
from collections.abc import Sequence
from pathlib import Path

from parity_jax.cli.arguments import Parser, stoppable
from parity_jax.config import RunError, require
from parity_jax.runs.directory import local_path
from parity_jax.runs.files import is_plain


def main(argv: Sequence[str]) -> None:
    """List what the arguments say."""
    parser = Parser("list", __doc__)
    parser.add_argument("directory", metavar="DIR", nargs="?", default="experiments")
    args = parser.parse_args(argv)
    folder = local_path("DIR", args.directory)
    require(folder.is_dir(), "DIR", args.directory, "must be a directory")
    with stoppable():
        told = {path.name: described(path) for path in sorted(folder.glob("*.py"))}
        lines = {name: text for name, text in told.items() if text is not None}
        allowed = "must hold an experiment: a file FILE.py that defines get_config"
        require(bool(lines), "DIR", args.directory, allowed)
        width = max(map(len, lines))
        for name, text in lines.items():
            print(f"{name:{width}}  {text}".rstrip())


def described(path: Path) -> str | None:
    """The first line of an experiment's docstring; None for any other file."""
    try:
        is_plain(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the file's own code
            module = ast.parse(path.read_bytes())
    except SyntaxError as error:
        where = f", line {error.lineno}" if error.lineno else ""
        return f"(cannot be read: {error.msg}{where})"
    except (RecursionError, MemoryError):  # both are Python's parser's
        return "(cannot be read: nested too deeply)"
    except (OSError, ValueError, RunError) as error:
        return f"(cannot be read: {error})"
    if "get_config" not in top_level_names(module):
        return None
    lines = (ast.get_docstring(module) or "").splitlines()
    return lines[0] if lines else "(no docstring)"


def top_level_names(module: ast.Module) -> set[str]:
    """What a module defines, imports or assigns outside functions and classes."""
    names: set[str] = set()
    for node in module.body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {x.id for x in node.targets if isinstance(x, ast.Name)}
    return names
