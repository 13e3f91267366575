"""What stands around the code calls what the Makefile calls."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def read(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_a_commit_is_checked_as_make_lint_does():
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.M)
    expand = {"$(VENV)": ".venv", "$(CURDIR)": "$PWD", "$$PATH": "$PATH"}
    commands = []
    for line in recipe[1].splitlines():
        command = line.strip()
        for name, value in expand.items():
            command = command.replace(name, value)
        commands.append(command)
    hooks = read(".pre-commit-config.yaml")["repos"][0]["hooks"]
    entries = [hook["entry"].removeprefix("bash -c ").strip("'") for hook in hooks]
    assert entries == commands
    assert all(hook["pass_filenames"] is False for hook in hooks)


def test_ci_is_the_script_that_anyone_can_run():
    steps = read(".github/workflows/ci.yml")["jobs"]["test"]["steps"]
    assert steps[-1]["run"] == ".ci/run"


def test_an_issue_asks_for_what_inspect_tells():
    for name in ("wrong_result", "failed_run"):
        body = read(f".github/ISSUE_TEMPLATE/{name}.yml")["body"]
        asked = [field["attributes"]["label"] for field in body]
        assert {"parity-jax inspect RUN --json", "parity-jax --version"} <= {*asked}
