"""From a grid to jobs: names, growth, splits, chains, and what is refused."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax.core import FrozenDict
from small_runs import train, walk, walks
from small_sweeps import (
    ROOT,
    arguments,
    experiment_file,
    jobs,
    start,
    states,
    swept,
    typed,
)

from launch import local, status, sweep
from launch.engines import settings_of
from launch.job import Life, Record, now
from launch.plan import lacking, parse_grid
from launch.queue import numbers, ranges
from launch.rows import last_accuracy
from parity_jax.axes import member_labels
from parity_jax.metrics import Mean
from parity_jax.runs import RunDirectory, curves
from parity_jax.runs.files import read_json
from parity_jax.runs.sweep import Sweep, SweepDirectory

PLAN = "--engine=none"


def planned(workdir, *more):
    """Names of the jobs, in their order."""
    code, _, told = swept(workdir, PLAN, *more)
    assert code == 0, told
    return [job["name"] for job in read_json(workdir / "sweep.json")["jobs"]]


def test_static_fields_are_jobs_and_axes_stay_in_a_program(tmp_path):
    grid = ["--grid=task.num_bits=4,5", "--grid=p_cot=0.1,0.25", "--grid=seed=0,1,2"]
    workdir = tmp_path / "sweep"
    assert planned(workdir, *grid) == ["num_bits=4", "num_bits=5"]
    first, second = read_json(workdir / "sweep.json")["jobs"]
    assert first["axes"] == {"p_cot": [0.1, 0.25], "seed": [0, 1, 2]}
    assert (first["members"], first["steps"]) == (
        6,
        {"run": 100, "child": 2, "other": 2},
    )
    edits = ["task.num_bits=5", "axes.p_cot=0.1,0.25", "axes.seed=0,1,2"]
    _, of_second = SweepDirectory(workdir).read().jobs
    assert of_second.arguments[1:] == [f"--config.{edit}" for edit in edits]
    # Nothing is told twice, so that no job is other than what it says of itself.
    assert (second["overrides"], second["fields"]) == ([], {"task.num_bits": "5"})


def test_a_sweep_grows_by_the_members_that_it_lacks(tmp_path):
    workdir, bits = tmp_path / "sweep", "--grid=task.num_bits=4"
    first = planned(workdir, bits, "--grid=p_cot=0.1", "--grid=seed=0,1")
    grown = ["--grid=p_cot=0.1,0.2", "--grid=seed=0,1,2"]
    second = planned(workdir, bits, *grown)
    assert first == second[:1] == ["num_bits=4"]
    assert second[1:] == ["num_bits=4,p_cot=0.2", "num_bits=4,p_cot=0.1,seed=2"]
    third = planned(workdir, f"{bits},5", *grown)
    assert third == [*second, "num_bits=5"]
    assert planned(workdir, f"{bits},5", *grown) == third
    found = read_json(workdir / "sweep.json")["jobs"]
    assert [job["axes"] for job in found] == [
        {"p_cot": [0.1], "seed": [0, 1]},
        {"p_cot": [0.2], "seed": [0, 1, 2]},
        {"p_cot": [0.1], "seed": [2]},
        {"p_cot": [0.1, 0.2], "seed": [0, 1, 2]},
    ]


def test_axes_that_do_not_fit_are_split(tmp_path):
    grid = ["--grid=seed=0,1,2,3,4", "--split=seed:2"]
    names = planned(tmp_path / "sweep", *grid)
    assert names == ["walks,seed=0..1", "walks,seed=2..3", "walks,seed=4"]


@pytest.mark.parametrize("split", [{}, {"b": 1}, {"a": 2, "b": 2}])
def test_boxes_cover_every_member_once(split):
    there = [{"a": (1,), "b": (1, 2)}, {"a": (3,), "b": (2,)}]
    whole = {"a": (1, 2, 3), "b": (1, 2, 3)}
    found = lacking(whole, split, there)
    assert all(len(box[axis]) <= n for axis, n in split.items() for box in found)
    members = [m for box in [*found, *there] for m in member_labels(box)]
    assert sorted(map(str, members)) == sorted(map(str, member_labels(whole)))


def test_chains_are_jobs_in_one_directory(tmp_path):
    workdir = tmp_path / "sweep"
    names = planned(workdir, "--chains", "--grid=task.num_bits=4,5")
    assert names == [f"num_bits={n},{c}" for n in (4, 5) for c in ("run", "other")]
    first, *_ = SweepDirectory(workdir).read().jobs
    assert (first.directory, first.chain) == ("num_bits=4", "run")
    assert first.arguments[-1] == "--only=run,child"
    assert first.steps == {"run": 100, "child": 2}


def test_several_experiments_are_jobs_under_their_names(tmp_path):
    file = experiment_file(tmp_path)
    (tmp_path / "others.py").write_text(file.read_text())
    both = f"--config={file},{tmp_path / 'others.py'}"
    assert planned(tmp_path / "sweep", both) == ["walks", "others"]
    names = planned(tmp_path / "grid", both, "--grid=task.num_bits=4")
    assert names == ["walks,num_bits=4", "others,num_bits=4"]


def test_fields_of_the_same_name_keep_their_path(tmp_path):
    grid = ["--grid=runs.run.log_every=2", "--grid=runs.child.log_every=1,2"]
    names = planned(tmp_path / "sweep", *grid)
    assert names == [f"runs.run.log_every=2,runs.child.log_every={n}" for n in (1, 2)]


def test_a_value_in_brackets_may_hold_commas():
    grid = parse_grid(["a=(1,2),3", "b=x"])
    assert grid == {"a": ("(1,2)", "3"), "b": ("x",)}


def test_numbers_of_jobs_are_told_in_short():
    for found in ([0], [0, 1, 2], [1, 3, 4, 5, 9]):
        assert numbers(ranges(found)) == found
    assert ranges([0, 1, 2, 5]) == "0-2,5"


MISTAKES = [
    (["--engine=cloud"], ("launch.engine='cloud'", "local, none, slurm")),
    (["--profile=nowhere"], ("--profile='nowhere'", "valid: cpu, gpu")),
    (["--profile=cpu", "--profiles=nowhere.toml"], ("cannot be read",)),
    (["--grid=task.num_bitz=4,5"], ("job num_bitz=4: task.num_bitz='4'", "'num_bits'")),
    (["--grid=task.num_bits=4,0"], ("job num_bits=0: task.num_bits=0", "must be in")),
    (["--grid=p_cot=0.5,2"], ("job walks: axes.p_cot=2", "must be in [0, 1]")),
    (["--grid=seed=a"], ("--grid=seed='a'", "must be numbers")),
    (["--grid=seed=0,1", "--grid=seed=2"], ("seed is swept twice",)),
    (["--grid=seed=0,0"], ("has 0 twice",)),
    (["--grid=axes.seed=0,1"], ("must name the axis alone: seed",)),
    (
        ["--grid=runs.walk.hypers.p_cot=0.1,0.2", "--grid=p_cot=0.3,0.4"],
        ("has no effect beside the axis p_cot",),
    ),
    (["--grid=task.num_bits=4,04"], ("job='num_bits=04'", "the same as job")),
    (
        [f"--grid=eval_file={ROOT}/README.md,{ROOT}/./README.md"],
        ("job='eval_file=", "the same as job"),
    ),
    (
        ["--grid=runs.run.hypers.beta=0.0,-0.0"],
        ("job='beta=-0.0'", "the same as job beta=0.0"),
    ),
    (
        ["--grid=runs.run.hypers.p_cot=0.1,0.100000001"],
        ("job='p_cot=0.100000001'", "the same as job"),
    ),
    (
        ["--grid=p_cot=0.1,0.100000001", "--split=p_cot:1"],
        ("axes.p_cot=(0.1, 0.100000001)", "must be distinct (as float32)"),
    ),
    (
        ["--grid=seed=0,00,1", "--split=seed:1"],
        ("axes.seed=(0, 0, 1)", "must be distinct"),
    ),
    (["--grid=seed"], ("must be NAME=VALUE",)),
    (
        ["--grid=seed=0,1", "--split=seed:1", "--split=seed:2"],
        ("seed is split twice",),
    ),
    (["--split=seed:2"], ("--split='seed'", "that --grid sweeps")),
    (["--grid=seed=0,1", "--split=seed:0"], ("--split='seed:0'", "at least 1")),
    (["--slurm=partition="], ("--slurm='partition='", "OPTION=VALUE")),
    (["--profile="], ("--profile='': is empty",)),
    (["--report="], ("--report='': is empty",)),
    (["--engine="], ("--engine='': is empty",)),
    (
        [f"--grid=runs.run.checkpoint_steps=({','.join(map(str, range(99)))})"],
        ("must have at most 255 bytes, not",),
    ),
    (["--slurm=signal=USR1"], ("launch.slurm.signal='USR1'", "is set by launch")),
    (["--grace=0"], ("launch.grace=0", "at least 1")),
    (["--slurm=partition=gpu"], ("--slurm=", "is for --engine=slurm, not none")),
    (["--grace=60", "--engine=local"], ("--grace=60", "slurm, not local")),
    (["--max_requeues=3"], ("--max_requeues=3", "is for --engine=slurm")),
    (["--parallel=3"], ("--parallel=3", "is for --engine=slurm")),
    (["--report=x"], ("--report='x'", "needs an engine")),
    (["--quiet", "--dry_run"], ("--quiet=True: --dry_run is there to show",)),
    (
        ["--grid=task.num_bits=4,5", "--config.task.num_bits=6"],
        ("task.num_bits='6'", "has no effect beside --grid=task.num_bits"),
    ),
    (
        ["--grid=seed=0,1", "--config.axes.seed=5"],
        ("axes.seed='5'", "has no effect beside --grid=seed"),
    ),
    (["--profiles=x.toml"], ("--profiles='x.toml'", "no effect without --profile")),
    (["--wokdir=x"], ("wokdir",)),
    (["--config="], ("--config='': is empty",)),
    (["--workdir="], ("--workdir='': is empty",)),
    (["--config=nowhere.py"], ("nowhere.py", "must be an experiment file")),
    (["--config.model.dept=3"], ("job walks: model.dept='3': unknown field",)),
]


@pytest.mark.parametrize(("mistake", "parts"), MISTAKES)
def test_a_mistake_costs_one_line_and_writes_nothing(tmp_path, mistake, parts):
    workdir = tmp_path / "sweep"
    code, out, told = swept(workdir, PLAN, *mistake)
    (line,) = told.splitlines()
    assert code == 2 and out == "" and line.startswith("error: "), told
    assert all(part in line for part in parts), line
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ("x = 3", "--profile='x': must be a table"),
        ('[x]\nslurm = "gpu"', "--profile=x slurm='gpu': must be a table of sbatch's"),
        ("[x]\nsetup = 3", "launch.setup=3: "),
    ],
)
def test_a_malformed_profile_is_one_line(tmp_path, profile, told):
    file, workdir = tmp_path / "own.toml", tmp_path / "sweep"
    file.write_text(profile)
    code, _, said = swept(workdir, "--profile=x", f"--profiles={file}")
    assert code == 2 and said.startswith(f"error: {told}"), said
    assert not workdir.exists()


def test_options_of_sbatch_may_have_no_value():
    profile = {"slurm": {"exclusive": True, "contiguous": False, "time": 60}}
    found = settings_of(profile, {"engine": "slurm", "slurm": {"no_kill": ""}})
    assert found.slurm == {"exclusive": "", "time": "60", "no-kill": ""}


def test_a_report_without_claims_is_refused_at_once(tmp_path):
    file = experiment_file(tmp_path)
    file.write_text(file.read_text().replace("def claims(", "def other("))
    report = f"--report={tmp_path / 'report'}"
    code, _, told = swept(tmp_path / "sweep", "--engine=local", report)
    assert code == 2 and "has nothing to tell: no claims in" in told, told
    assert not (tmp_path / "sweep").exists()


def test_settings_under_which_no_job_works_are_refused_at_once(tmp_path):
    command = ["launch.sweep", *arguments(tmp_path / "sweep")]
    process = start(*command, JAX_DISABLE_JIT="1")
    said = process.communicate()[0]
    assert process.returncode == 2, said
    assert said == "error: JAX_DISABLE_JIT=True: nothing here works with it\n"
    assert not (tmp_path / "sweep").exists()


def test_a_directory_keeps_to_its_sweep(tmp_path):
    workdir = tmp_path / "sweep"
    grid = ["--grid=task.num_bits=4,5", "--grid=seed=0,1"]
    planned(workdir, *grid)
    before = (workdir / "sweep.json").read_bytes()
    (tmp_path / "others.py").write_text(experiment_file(tmp_path).read_text())
    for other, part in (
        ([*grid, f"--config={tmp_path / 'others.py'}"], "holds a sweep of"),
        (grid[:1], "holds a sweep over task.num_bits, seed"),
        ([*grid, "--grid=p_cot=0.1"], "holds a sweep over"),
        ([*grid, "--chains"], "holds a sweep with --chains=False"),
        (["--grid=task.num_bits=4", grid[1]], "jobs with 5: a sweep only grows"),
    ):
        code, _, told = swept(workdir, PLAN, *other)
        assert code == 2 and part in told and len(told.splitlines()) == 1, told
    assert (workdir / "sweep.json").read_bytes() == before
    content = json.loads(before) | {"commit": "abc"}
    (workdir / "sweep.json").write_text(json.dumps(content))
    code, _, told = swept(workdir, PLAN, *grid)
    assert code == 0 and "warning: " in told and "planned at commit abc" in told


def test_a_directory_of_an_experiment_is_not_swept(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    code, _, told = swept(tmp_path / "run", PLAN)
    assert code == 2 and "is the directory of an experiment" in told


TABLE = """\
     job         members  steps  state of members  now      runs
  0  num_bits=4  6        104    0.0 MiB           planned  run, child, other
  1  num_bits=5  6        104    0.0 MiB           planned  run, child, other
2 jobs, 12 members: 2 planned
"""


def test_a_dry_run_is_a_table(tmp_path):
    grid = ["--grid=task.num_bits=4,5", "--grid=p_cot=0.1,0.2", "--grid=seed=0,1,2"]
    code, out, told = swept(tmp_path / "sweep", *grid, "--dry_run")
    assert (code, out) == (0, TABLE), told
    assert not (tmp_path / "sweep").exists()


def test_an_analysis_that_cannot_be_is_found_before_anything_is_launched(tmp_path):
    file = experiment_file(tmp_path)
    file.write_text(file.read_text().replace("greedy/accuracy", "t0.5/p_long"))
    code, _, told = swept(tmp_path / "sweep", PLAN, "--grid=seed=0,1")
    assert code == 2 and "claims, rehearsed" in told.splitlines()[-1]
    assert not (tmp_path / "sweep").exists()


def test_own_code_that_changes_settings_is_found_before_anything_is_launched(tmp_path):
    file, update = (
        experiment_file(tmp_path),
        "jax.config.update('jax_enable_x64', True)",
    )
    file.write_text(f"import jax\n{update}\n{file.read_text()}")
    try:
        code, _, told = swept(tmp_path / "sweep", PLAN, "--grid=seed=0,1")
    finally:
        jax.config.update("jax_enable_x64", False)
    assert code == 2 and "must not change jax_enable_x64" in told
    assert not (tmp_path / "sweep").exists()


def test_help_and_status_of_nothing(tmp_path):
    assert "--grid=NAME" in typed(sweep, "--help")[1]
    for path in (tmp_path, tmp_path / "nowhere"):
        code, _, told = typed(status, path)
        assert code == 2 and "must be the directory of a sweep" in told
    workdir = tmp_path / "sweep"
    planned(workdir)
    assert states(workdir) == {"walks": "planned"}
    for mistake, said in (
        (["--relaunch=faild"], "did you mean 'failed'"),
        (["--relaunch=failed", "--json"], "json=True: has no effect with --relaunch"),
        (["--relaunch=failed", "--watch"], "watch=5.0: has no effect with --rel"),
        (["--watch=-1"], "--watch=-1.0: must be seconds in [0.1, 86400]"),
        (["--watch=nan"], "--watch=nan: must be seconds in"),
    ):
        code, _, told = typed(status, workdir, *mistake)
        assert code == 2 and said in told, told
    assert arguments(workdir) and jobs(workdir)["walks"]["attempts"] == 0


def test_a_swept_field_is_called_as_no_other_dimension_is():
    """Another run may have an axis of that name."""
    for name, short in {
        "task.source.seed": "task.source.seed",
        "runs.walk.hypers.p_cot": "runs.walk.hypers.p_cot",
        "runs.walk.hypers.ridge": "ridge",
        "seed": "seed",
        "p_cot": "p_cot",
        "task.num_bits": "num_bits",
    }.items():
        grid = FrozenDict({name: ("1", "2")})
        found = Sweep(("a.py",), grid, False, None, (), axes=("p_cot", "seed"))
        assert found.short_names == {name: short}


CHILDREN = """
import sys

sys.path.insert(0, {tests!r})

from small_runs import walk, walks


def get_config(scale="a"):
    return walks(child=walk({parent!r}))
"""


def test_a_job_without_a_parent_is_found_before_any_is_launched(tmp_path):
    """The job that was traced for all has one."""
    train(walks(first=walk()), tmp_path / "parent")
    parent = str(tmp_path / "parent/first")
    file = tmp_path / "children.py"
    file.write_text(CHILDREN.format(tests=str(ROOT / "tests"), parent=parent))
    grid = ["--grid=seed=0,1,2,3", "--split=seed:2"]
    for more in (["--dry_run"], []):
        command = [f"--config={file}", f"--workdir={tmp_path}/sweep", *grid, *more]
        code, _, told = typed(sweep, *command)
        assert code == 2 and "seed=2..3: runs.child.parent_member.seed" in told, told
    scales = [f"--config={file}:a", f"--workdir={tmp_path}/sweep", "--grid=scale=a,b"]
    code, _, told = typed(sweep, *scales)
    assert code == 2 and "scale='a': has no effect beside --config=" in told, told
    assert not (tmp_path / "sweep").exists()


def test_what_only_the_end_of_a_sweep_would_find_is_found_at_once(
    tmp_path, monkeypatch
):
    workdir = tmp_path / "sweep"
    (tmp_path / "file").write_text("")
    reports = [
        (workdir / "report", "must not be in"),
        ("gs://bucket/report", "must be on a file system"),
        (tmp_path / "file/report", "file must be a directory"),
    ]
    for report, said in reports:
        code, _, told = swept(workdir, f"--report={report}", "--engine=local")
        assert code == 2 and told.count("\n") == 1 and said in told, told
    monkeypatch.setitem(curves.PACKAGES, "wandb", "no_such_package")
    for more in (["--dry_run"], ["--engine=local"]):
        code, _, told = swept(workdir, "--config.log=wandb", *more)
        assert code == 2 and "log='wandb': is not installed" in told, told
    assert not workdir.exists()


def test_what_has_no_engine_is_not_started_again(tmp_path):
    workdir = tmp_path / "sweep"
    planned(workdir)
    code, out, told = typed(status, workdir, "--relaunch=planned")
    assert code == 2 and out == "" and "has no engine that starts jobs" in told, told


@pytest.mark.parametrize(
    ("name", "value"),
    [("JAX_ENABLE_X64", "maybe"), ("MPLBACKEND", "paper"), ("XLA_FLAGS", "--fast")],
)
@pytest.mark.parametrize("module", ["sweep", "status", "job"])
def test_an_environment_that_cannot_be_is_one_line(module, name, value):
    command = [sys.executable, "-m", f"launch.{module}", "x", "0"]
    env = os.environ | {name: value}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: cannot start: "), line
    assert value in line


COMMANDS = {
    "srun": "exit 0",
    "squeue": "exit 0",
    "sbatch": """
case "$(cat "$1" "${@: -1}" 2>/dev/null)" in
*report*) echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1 ;;
esac
echo "Submitted batch job 77"
""",
    "scancel": 'echo "$@" >> "$(dirname "$0")/cancelled"',
}


def test_jobs_are_taken_back_where_their_report_is_refused(tmp_path, monkeypatch):
    """Slurm took the array, and not the job that waits for it."""
    pytest.importorskip("submitit")
    for name, script in COMMANDS.items():
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/bin/bash\n{script}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    workdir = tmp_path / "sweep"
    slurm = ["--engine=slurm", "--slurm=time=10", f"--report={tmp_path}/report"]
    code, _, told = swept(workdir, *slurm, "--grid=task.num_bits=4,5")
    assert code == 2 and "QOSMaxSubmitJobPerUserLimit" in told, told
    cancelled = (tmp_path / "bin/cancelled").read_text().split()
    assert cancelled == ["77_0", "77_1"]
    assert not (workdir / "sweep.json").exists()


def test_a_job_that_will_be_refused_is_before_any_is_launched(tmp_path):
    """Its part of an axis is other than that of the job that was traced for all."""
    workdir = tmp_path / "sweep"
    grid = ["--grid=ridge=1e-3,1e-2", "--split=ridge:1"]  # the first one is the default
    file = tmp_path / "plain.py"
    path = f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\n"
    file.write_text(
        path + "from tiny import tiny_experiment\nget_config = tiny_experiment\n"
    )
    for more in (["--dry_run"], []):
        command = [f"--config={file}", f"--workdir={workdir}", *grid, *more]
        code, _, told = typed(sweep, *command)
        assert code == 2 and "axes.ridge=(0.01,): is read by no run" in told, told
        assert not workdir.exists()


def test_no_launcher_works_beside_another_whatever_its_engine(tmp_path):
    """Nor writes a sweep.json that the jobs of the other would read."""
    workdir = tmp_path / "sweep"
    assert planned(workdir, "--grid=seed=0") == ["walks"]
    before = (workdir / "sweep.json").read_text()
    with local.held(SweepDirectory(workdir)):
        code, _, told = swept(workdir, PLAN, "--grid=seed=0,1")
    assert code == 1 and "in use by" in told, told
    assert (workdir / "sweep.json").read_text() == before


def test_the_accuracy_of_a_job_is_of_its_last_run(tmp_path):
    """None where its members all diverged; another run's says nothing of it."""
    run = {name: RunDirectory(tmp_path / name) for name in "ab"}
    for name, accuracy in (("a", (3.0, 1.0)), ("b", (0.0, 0.0))):
        run[name].path.mkdir()
        count = 1.0 if name == "a" else 0.0
        mean = Mean(np.array(accuracy), np.full(2, 4 * count))
        run[name].metrics.append("eval", 0, 0.0, {"greedy/accuracy": mean})
    assert last_accuracy([run["a"]]) == 0.5
    assert last_accuracy([run["a"], run["b"]]) is None


def test_a_job_that_runs_stays_the_job_that_it_is(tmp_path):
    """As one that a queue started, beside which no launcher works."""
    workdir = tmp_path / "sweep"
    assert planned(workdir) == ["walks"]
    home = SweepDirectory(workdir)
    record, before = Record(home, home.read().jobs[0]), contents_of(workdir)
    with record.locked():
        here = (socket.gethostname(), os.getpid(), "", now())
        record.write(Life(1, *here, step=0, idle=0))
        change = "--config.runs.other.hypers.learning_rate=0.5"
        code, _, told = swept(workdir, PLAN, change)
    assert code == 2 and "=0.5: must stay as it is while job walks is running" in (
        told.replace("'", "")
    )
    assert contents_of(workdir) == before


def contents_of(workdir):
    return (workdir / "sweep.json").read_bytes()
