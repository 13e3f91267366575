"""What README, site and docstrings tell a user to type is typed here, as it stands.

Runs are made tiny by overrides that are appended; everything else is as written.
"""

import ast
import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from shrunk import SHORTER, choices, shortened, tiny_flags
from small_texts import gsm8k_like, tiny_folder, write_rows

import launch.status
import launch.sweep
from parity_jax.analysis import load_metrics
from parity_jax.cli import run as run_command
from parity_jax.cli.door import through_the_door
from parity_jax.cli.main import run
from parity_jax.cli.run import configured
from parity_jax.config import ConfigError

ROOT = Path(__file__).parents[1]
LAUNCH = {"launch.sweep": launch.sweep, "launch.status": launch.status}
EXPERIMENTS = sorted(
    path.stem
    for path in (ROOT / "experiments").glob("*.py")
    if path.stem not in ("lab", "lab_text")
)
LOAD = run_command.load_experiment
OF_MODELS = ("competition_math", "gsm8k")  # whose scales are models


@pytest.fixture(scope="session")
def named(tmp_path_factory):
    """What environment variables name for the experiments on text, all made up."""
    folder = tmp_path_factory.mktemp("named")
    for split in ("train", "test"):
        write_rows(folder / f"{split}.jsonl", gsm8k_like() * 2)
    (folder / "math").mkdir()
    rows = [
        {"problem": f"{n}?", "solution": f"It is \\boxed{{{n}}}."} for n in range(16)
    ]
    for split in ("train", "test"):
        write_rows(folder / "math" / f"{split}.jsonl", rows)
    model = str(tiny_folder(folder / "model", vocab_size=400))
    return {"GSM8K": str(folder), "MATH": str(folder / "math"), "SMOLLM2": model}


@pytest.fixture
def checkout(tmp_path, monkeypatch, named):
    """A folder like a fresh checkout, to work in; imports are forgotten afterwards."""
    for variable, path in named.items():
        monkeypatch.setenv(variable, path)
    for name in ("experiments", "tests", "launch"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(
        run_command, "load_experiment", lambda path: shortened(LOAD(path))
    )
    before = {*sys.modules}
    yield tmp_path
    forget({*sys.modules} - before)


def forget(names):
    """Experiments and what they import from their folder: each run loads its own."""
    for name in names:
        file = str(getattr(sys.modules[name], "__file__", None) or "")
        own = ("/experiments/", "/outside/", str(Path.cwd()))
        if any(part in file for part in own):
            del sys.modules[name]


def blocks(language, file="README.md"):
    """The fenced blocks of a page in a language."""
    tokens = MarkdownIt().parse((ROOT / file).read_text())
    return [t.content for t in tokens if t.type == "fence" and t.info == language]


def commands(text):
    """Command lines in a text, without the program; `\\` continues a line."""
    joined = re.sub(r"\\?\n +(?=--)", " ", text)
    found = re.findall(
        r"^(?:[^\n`]*?(?:parity-jax|python -m) )?((?:(?<!^)(?:run|list|watch|inspect|"
        r"report|diagnose|export_hf|launch\.(?:sweep|status))|(?<=^)cp) .*)$",
        joined,
        re.M,
    )
    return [shlex.split(re.sub(r"\[.*?\]", "", line)) for line in found]


def pages():
    """README, then the site without its notebooks, which are executed when built."""
    made = ("docs/_build", "docs/reference/api")
    found = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))
    found = [p for p in found if not p.startswith(made)]
    is_notebook = {p: "mystnb" in (ROOT / p).read_text()[:60] for p in found}
    return ["README.md", "launch/README.md", *(p for p in found if not is_notebook[p])]


def shrunk(arguments):
    """A command, with overrides appended if it runs an experiment."""
    if arguments[0] not in ("run", "launch.sweep"):
        return arguments
    config = next(a.partition("=")[2] for a in arguments if a.startswith("--config="))
    before = {*sys.modules}
    _, experiment = configured(config, [])
    forget({*sys.modules} - before)
    typed = [a for a in arguments if a.startswith("--config.")]
    own = {a.partition("=")[0] for a in typed}
    swept = [a.split("=")[1] for a in arguments if a.startswith("--grid=")]
    own |= {f"--config.{name}" for name in swept}
    tiny = [a for a in tiny_flags(experiment) if a.partition("=")[0] not in own]
    quiet = [] if "--dry_run" in arguments else ["--quiet"]
    return [*arguments, *quiet, "--debug", *tiny]


def typed(arguments):
    if arguments[0] == "cp":
        return 0 if shutil.copy(*arguments[1:]) else 1
    before, command = {*sys.modules}, shrunk(arguments)
    if command[0] in LAUNCH:
        code = through_the_door(lambda: LAUNCH[command[0]].main(command[1:]))
    else:
        code = run(command)
    forget({*sys.modules} - before)
    return code


def test_the_pages_from_top_to_bottom(checkout, capsys):
    """Commands of README and site, after `make headline`, and their Python."""
    assert typed(HEADLINE) == 0, capsys.readouterr().err
    done: list[list[str]] = []
    for page in pages():
        for command in (c for block in blocks("", page) for c in commands(block)):
            if command in done:
                continue
            done.append(command)
            capsys.readouterr()
            assert typed(command) == 0, (page, capsys.readouterr().err)
            if "--dry_run" in command:  # the text says that it is left out then
                real = [a for a in command if a != "--dry_run"]
                assert typed(real) == 0, capsys.readouterr().err
        for snippet in blocks("python", page):
            exec(compile(snippet, page, "exec"), {})
    assert {c[0] for c in done} >= {"run", "inspect", "report", "export_hf", *LAUNCH}
    told = shlex.split((checkout / "runs/headline/command.txt").read_text())
    assert told[:4] == ["parity-jax", *HEADLINE]
    explained = (ROOT / "docs/reference/metrics.md").read_text()
    for name in ("pretrain", "grpo"):
        for split in ("eval", "train"):
            for metric in map(str, load_metrics(f"runs/headline/{name}", split)):
                assert f"{metric.rpartition('/')[2]}`" in explained, metric


def test_its_wrong_flag_says_what_the_readme_says(checkout, capsys):
    options = ["run", "--config=experiments/headline.py", "--workdir=runs/x"]
    assert run([*options, "--config.model.dept=3"]) == 2
    expected = next(b for b in blocks("") if b.startswith("error: ")).strip()
    assert capsys.readouterr().err.startswith(expected.removesuffix("..."))


HEADLINE = ["run", "--config=experiments/headline.py", "--workdir=runs/headline"]


@pytest.mark.parametrize("text", ["evaluate.temperatures=0.75", "axes.p_cot=0,0.25"])
def test_what_the_claims_of_the_headline_cannot_judge_is_not_trained(
    text, checkout, capsys
):
    assert typed([*HEADLINE, f"--config.{text}"]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ") and "claims, rehearsed on" in last
    assert not (checkout / "runs").exists()


def test_the_claims_of_the_headline_judge_every_value_of_an_axis(checkout, capsys):
    assert typed([*HEADLINE, "--config.axes.p_cot=0.1,0.25"]) == 0
    claims = json.loads((checkout / "runs/headline/claims.json").read_text())
    found = {claim["id"]: claim["expected"] for claim in claims}
    assert found["C1"] == {"p_cot=0.1": 0.1, "p_cot=0.25": 0.25}
    assert found["C2"] == {"p_cot=0.1": 0.55, "p_cot=0.25": 0.625}


def test_members_of_several_checkpoints_in_one_launch(checkout, capsys):
    """The flag of the README, with which claims and figure are rehearsed."""
    text = (ROOT / "README.md").read_text()
    ((flag, file),) = re.findall(r"`(--\S+parent_step=0,300)` \(of `(\S+)`\)", text)
    small = [f"--config.model.{name}" for name in ("depth=1", "num_heads=1", "width=8")]
    command = ["run", f"--config={file}", "--workdir=runs/several", "--dry_run"]
    assert run([*command, *small, flag]) == 0
    assert "\ngrpo: 4 members" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_command_of_an_experiment(name, checkout, capsys):
    """Typed as its docstring has it, to its claims and figure."""
    text = ast.get_docstring(ast.parse((ROOT / f"experiments/{name}.py").read_text()))
    for line in ("Command ", "Device ", "Expected ", "Figure "):
        assert f"\n{line}" in text, line
    command, *_ = commands(text.replace("Command    ", "").replace("(parity", "parity"))
    command = [a.rstrip(";") for a in command]
    assert command[:2] == ["run", f"--config=experiments/{name}.py"]
    assert command[2] == f"--workdir=runs/{name}"
    assert typed(command[:3]) == 0, capsys.readouterr().err
    assert (checkout / "runs" / name / "claims.json").stat().st_size > 2
    assert (checkout / "runs" / name / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize("name", SHORTER)
def test_a_shorter_list_has_every_kind_of_the_whole(name, checkout, monkeypatch):
    """Objectives, rewards, families of models: whatever is chosen by name is run."""
    found = []
    for load in (run_command.load_experiment, LOAD):
        monkeypatch.setattr(run_command, "load_experiment", load)
        before = {*sys.modules}
        found.append(configured(f"experiments/{name}.py", [])[1])
        forget({*sys.modules} - before)
    short, whole = found
    assert choices(short) == choices(whole)
    assert {*short.runs} <= {*whole.runs} and short != whole


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_scale_of_the_paper(name, checkout):
    """`--config.scale=paper`, where there is one, is another valid experiment."""
    from parity_jax.config.overrides import Override

    file = f"experiments/{name}.py"
    before = {*sys.modules}
    _, small = configured(file, [])
    forget({*sys.modules} - before)
    try:
        other = "smollm2" if name in OF_MODELS else "paper"
        _, large = configured(file, [Override("scale", other)])
    except ConfigError as error:
        assert "only one scale" in str(error)
        return
    assert large != small
    forget({*sys.modules} - before)
    with pytest.raises(ConfigError, match=r"valid: (cpu, (long, )?paper|llama-3\.1)"):
        configured(f"{file}:papr", [])


def test_what_stands_outside_runs_without_a_change_inside(checkout, capsys):
    """A task, an algorithm, a reward and an experiment of one's own."""
    command = ["run", "--config=tests/outside/toy_experiment.py", "--workdir=runs/toy"]
    before = {*sys.modules}
    assert run([*command, "--quiet", "--debug"]) == 0, capsys.readouterr().err
    forget({*sys.modules} - before)
    claims = (checkout / "runs/toy/claims.json").read_text()
    assert '"holds": true' in claims and (checkout / "runs/toy/figure.png").exists()
    config = (checkout / "runs/toy/imitate/config.json").read_text()
    assert '"kind": "toy_task:CopyConfig"' in config
    assert '"kind": "toy_stage:ImitateConfig"' in config
    assert run(["inspect", "runs/toy/grpo", "--prompts=1"]) == 0
    assert "pays_length" in capsys.readouterr().out


def test_play_answers_a_prompt(checkout, capsys, monkeypatch):
    command = ["run", "--config=experiments/headline.py", "--workdir=runs/headline"]
    assert typed(command) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("+-++\n"))
    assert run(["play", "runs/headline/grpo"]) == 0
    assert "greedy" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", "results/README.md"])
def test_what_a_page_links_is_there(page):
    """Files beside it, and no word that waits for a result."""
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)#\s]+)", text)
    local = [link for link in links if "://" not in link]
    assert local and not re.findall(r"[A-Z0-9]+_SEEN", text)
    assert [x for x in local if not (ROOT / page).parent.joinpath(x).exists()] == []
