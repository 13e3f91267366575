"""The local engine: jobs one after the other, whatever is killed in between."""

import dataclasses
import json
import os
import re
import shutil
import signal
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
from flax.core import FrozenDict
from small_runs import contents, train, walk, walks
from small_sweeps import (
    LONG,
    ROOT,
    arguments,
    experiment_file,
    jobs,
    start,
    states,
    swept,
    typed,
)

from launch import job as launch_job
from launch import status, sweep
from launch.job import Life, Record, new_life
from launch.rows import KILLED, Row, rows
from launch.status import text
from parity_jax.analysis import load_metrics, load_sweep
from parity_jax.analysis.sweeps import final_table, sweep_figure
from parity_jax.cli.main import run
from parity_jax.cli.run import configured
from parity_jax.config import ConfigError, RunError
from parity_jax.config.overrides import parse
from parity_jax.hypers import Hypers
from parity_jax.runs.directory import RunDirectory
from parity_jax.runs.files import lock, read_json
from parity_jax.runs.sweep import Sweep, SweepDirectory, SweepJob


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep that has grown: three jobs, all done."""
    workdir = tmp_path_factory.mktemp("local") / "sweep"
    code, out, told = swept(workdir, "--grid=task.num_bits=4", "--grid=seed=0,1")
    assert code == 0 and out.endswith("1 job: 1 finished\n"), told
    assert "[1/1] num_bits=4: started" in told
    assert "[1/1] num_bits=4: finished after" in told
    before = changes(workdir)
    grid = ["--grid=task.num_bits=4,5", "--grid=seed=0,1,2"]
    code, out, told = swept(workdir, *grid)
    assert code == 0 and out.endswith("3 jobs: 3 finished\n"), told
    assert "[1/3]" not in told  # what was done is left alone
    assert before.items() <= changes(workdir).items()
    return workdir


def changes(workdir):
    """When each file of the runs was written last."""
    return {p: p.stat().st_mtime_ns for p in workdir.glob("num_bits=*/*/*.json*")}


def undisturbed(workdir, name, place):
    """What a job of a sweep leaves when nothing but `run` has worked on it."""
    home = SweepDirectory(workdir)
    (job,) = [job for job in home.read().jobs if job.name == name]
    overrides = parse([a for a in job.arguments if a.startswith("--config.")])
    train(configured(job.config, overrides)[1], place)
    return contents(place)


@pytest.fixture
def fresh_imports(monkeypatch):
    monkeypatch.delitem(launch_job.sys.modules, "walks", raising=False)
    yield
    launch_job.sys.modules.pop("walks", None)


def test_a_job_is_the_run_it_says(finished, tmp_path, fresh_imports):
    name = "num_bits=4,seed=2"
    assert states(finished) == dict.fromkeys(
        ("num_bits=4", name, "num_bits=5"), "finished"
    )
    assert contents(finished / name) == undisturbed(finished, name, tmp_path / "run")


def test_status_watches_until_nothing_runs(finished):
    code, out, told = typed(status, finished, "--watch=0.1")
    assert (code, told) == (0, "") and out.endswith("3 jobs, 6 members: 3 finished\n")


def test_status_watches_as_long_as_a_launcher_lives(finished):
    """Between two jobs of its own none is running."""
    with lock(SweepDirectory(finished).records):
        process = start("launch.status", finished, "--watch=0.1")
        while process.stdout.readline().count("3 jobs, 6 members") == 0:
            assert process.poll() is None
        assert "job" in process.stdout.readline()  # again
    rest, _ = process.communicate(timeout=100)
    assert process.returncode == 0 and rest.endswith("3 finished\n")
    code, _, told = typed(status, finished, "--relaunch=")
    assert code == 2 and told.startswith("error: --relaunch='': is empty"), told


def test_status_finds_code_beside_the_experiment(finished):
    """Where it is not, what has finished is told as that, and nothing fails."""
    beside = finished.parent / "small_runs.py"
    for is_found in (False, True):
        if is_found:
            beside.symlink_to(ROOT / "tests" / "small_runs.py")
        process = start("launch.status", finished, "--json")
        found = json.loads(process.communicate(timeout=100)[0])
        assert found["totals"]["finished"] == len(found["jobs"]) == 3
        notes = [job["note"] for job in found["jobs"]]
        expected = "1 of 1 claims hold" if is_found else "not verified: "
        assert all(note.startswith(expected) for note in notes), notes
        assert is_found or all("set PYTHONPATH" in note for note in notes)
    beside.unlink()


def test_a_sweep_is_one_dataset(finished):
    with pytest.raises(ConfigError, match="split='x': unknown; valid: eval, train"):
        load_sweep(finished, "run", "x")
    scores = load_sweep(finished, "run")
    assert dict(scores.sizes) == {"seed": 3, "step": 3, "num_bits": 2}
    assert not scores["greedy/accuracy"].isnull().any()
    alone = load_metrics(finished / "num_bits=5" / "run")
    same = scores.sel(num_bits=5, drop=True).transpose(*alone.dims)
    assert same["greedy/accuracy"].equals(alone["greedy/accuracy"])
    assert same["sequences"].values.tolist() == alone["sequences"].values.tolist()


def test_a_job_in_the_place_of_another_is_not_read(finished, tmp_path, capsys):
    """Its scores would stand under the values of the other."""
    workdir = shutil.copytree(finished, tmp_path / "sweep")
    first, second = workdir / "num_bits=4", workdir / "num_bits=5"
    first.rename(tmp_path / "first")
    second.rename(first)
    (tmp_path / "first").rename(second)
    told = "task.num_bits is 5 there, 4 here"
    found = {each.job: each for each in rows(SweepDirectory(workdir), {})}
    assert {found[p.name].state for p in (first, second)} == {"failed"}
    assert told in found[first.name].note
    assert run(["inspect", str(workdir)]) == 1
    assert told in capsys.readouterr().err
    with pytest.raises(RunError, match=f"num_bits=4: is not of this job: .*{told}"):
        load_sweep(workdir, "run")
    assert run(["report", str(workdir), f"--output={tmp_path / 'out'}"]) == 1
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_scales_and_values_that_are_text_stay_apart(tmp_path):
    for name, rate in (("a", 1e-2), ("b", 2e-2)):
        one = walk(hypers=Hypers(learning_rate=rate))
        train(walks(run=one, seeds=(0,)), tmp_path / name)
    home, nothing = SweepDirectory(tmp_path), FrozenDict()

    def write(configs, grid, scales, **damage):
        jobs = []
        for name, config, fields in zip("ab", configs * 2, scales, strict=False):
            part = (nothing, "", FrozenDict({"run": 4}), 1)
            job = SweepJob(name, name, (), config, FrozenDict(fields), *part)
            jobs.append(replace(job, **damage))
        home.write(Sweep(configs, FrozenDict(grid), False, None, tuple(jobs)))

    write(("w.py:a", "w.py:b"), {}, ({}, {}))
    assert load_sweep(tmp_path, "run")["config"].values.tolist() == ["w:a", "w:b"]
    for scales in (("1", "1.0"), ("2", "small"), ("1", "nan")):
        write(("w.py",), {"scale": scales}, [{"scale": scale} for scale in scales])
        assert load_sweep(tmp_path, "run")["scale"].values.tolist() == [*scales]
        assert len(final_table(tmp_path)) == 2
    for damage in (
        {"directory": ".."},
        {"steps": nothing},
        {"steps": FrozenDict({"../a/run": 4})},
        {"fields": FrozenDict({"width": "3"})},
        {"members": 0},
    ):
        write(("w.py",), {"scale": ("1",)}, [{"scale": "1"}], **damage)
        with pytest.raises(RunError, match=r"sweep\.json: damaged: job"):
            home.read()


def test_a_job_without_a_record_is_left_out_with_a_word(finished, tmp_path, capsys):
    workdir = shutil.copytree(finished, tmp_path / "sweep")
    shutil.rmtree(workdir / "num_bits=5" / "run")
    assert load_sweep(workdir, "run")["num_bits"].values.tolist() == [4]
    told = "1 of 3 jobs have no record of run yet and are left out: num_bits=5"
    assert capsys.readouterr().err == f"warning: {workdir}: {told}\n"


def test_members_that_never_were_are_not_told(tmp_path, capsys):
    """Where a job has an axis, others have a number; one diverged, one is not done."""
    rates, fields = (1e-3, 2e-3), ("a", "b", "c")
    runs = [
        walk(axes=FrozenDict({"learning_rate": rates})),
        walk(hypers=Hypers(learning_rate=1e30)),
        walk(hypers=Hypers(learning_rate=4e-3)),
    ]
    for name, own in zip(fields, runs, strict=True):
        fails = pytest.raises(RunError, match="all members diverged")
        with fails if name == "b" else nullcontext():
            train(walks(run=own, other=walk(), seeds=(0,)), tmp_path / name)
        (tmp_path / name / "claims.json").write_text("[]")
    jobs = [
        SweepJob(
            name,
            name,
            (),
            "w.py",
            FrozenDict({"scale": name}),
            FrozenDict(),
            "",
            FrozenDict({"run": 4, "other": 4}),
            1,
        )
        for name in fields
    ]
    grid = FrozenDict({"scale": fields})
    SweepDirectory(tmp_path).write(Sweep(("w.py",), grid, False, None, tuple(jobs)))
    (tmp_path / "c/run/finished.json").unlink()
    scores = load_sweep(tmp_path, "run")["greedy/accuracy"]
    assert scores["learning_rate"].values.tolist() == [*rates, 4e-3, 1e30]
    known = scores.isel(step=0, seed=0, drop=True).notnull()
    assert known.sel(scale="a").values.tolist() == [True, True, False, False]
    assert known.sel(scale="b").values.tolist() == [False, False, False, True]
    table = [row for row in final_table(tmp_path) if row["run"] == "run"]
    found = {row["scale"]: row["scores"]["greedy/accuracy"] for row in table}
    assert found.keys() == {"a", "b"} and found["b"] == {"seed=0": None}
    assert [*found["a"]] == ["learning_rate=0.001,seed=0", "learning_rate=0.002,seed=0"]
    for by, panels in (("learning_rate", ["run"]), ("seed", ["run", "other"])):
        picture = sweep_figure(tmp_path, "greedy/accuracy", "scale", by)
        assert [ax.get_title(loc="left") for ax in picture.axes] == panels


def test_what_is_added_to_a_sweep_is_checked_whole(finished):
    """Though the first job of its shape has ended, and traces nothing."""
    file = experiment_file(finished.parent)
    whole, grid = file.read_text(), "--grid=task.num_bits=4,5"
    more = (grid, "--grid=seed=0,1,2,3", "--dry_run")
    code, out, told = swept(finished, *more)
    added = [line for line in out.splitlines() if "seed=3" in line]
    assert code == 0 and len(added) == 2, told
    assert all("MiB" in line for line in added), out
    try:
        file.write_text(whole.replace("greedy/accuracy", "t0.5/p_long"))
        code, _, told = swept(finished, *more)
    finally:
        file.write_text(whole)
    assert code == 2 and "claims, rehearsed" in told.splitlines()[-1], told


def test_jobs_without_claims_are_told(finished, tmp_path, capsys):
    """In a report, which leaves them out, and where the runs of a sweep are listed."""
    home = shutil.copytree(finished, tmp_path / "sweep")
    shutil.rmtree(home / "num_bits=5")
    assert run(["report", str(home), f"--output={tmp_path / 'out'}"]) == 0
    told = "1 of 3 experiments have no claims yet and are left out: num_bits=5"
    assert f"warning: {home}: {told}" in capsys.readouterr().err
    assert run(["inspect", str(home)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("num_bits=5" in line and "not begun" in line for line in lines)


def test_a_sweep_is_reported_and_inspected(finished, tmp_path, capsys):
    output = tmp_path / "out"
    over = ["--score=greedy/accuracy", "--over=num_bits,seed"]
    assert run(["report", str(finished), f"--output={output}", *over]) == 0
    assert "3 of 3 claims hold" in capsys.readouterr().out
    report = (output / "report.md").read_text()
    table = report.partition("# Sweep sweep")[2].splitlines()
    assert table[2] == "| run | num_bits | greedy accuracy |"
    assert [line.split(" | ")[:2] for line in table[4:10]] == [
        [f"| {name}", f"{bits}"]
        for name in ("run", "child", "other")
        for bits in (4, 5)
    ]
    picture = (output / "sweep.png").read_bytes()
    assert run(["report", str(finished), f"--output={output}"]) == 0
    assert not (output / "sweep.png").exists()  # of the report before
    (output / "sweep.png").write_bytes(picture)
    rows = read_json(output / "sweep.scores.json")
    assert rows[0]["scores"]["greedy/accuracy"].keys() == {"seed=0", "seed=1", "seed=2"}
    assert (output / "sweep.png").stat().st_size > 1000
    for wrong, part in (
        ("--score=accuracy", "--score='accuracy'"),
        ("--over=num_bits,width", "--over='width'"),
        ("--over=num_bits", "must be two swept fields"),
        ("--over=", "--over='': is empty"),
    ):
        command = ["report", str(finished), f"--output={tmp_path / 'no'}", *over, wrong]
        assert run(command) == 2
        assert part in capsys.readouterr().err and not (tmp_path / "no").exists()
    home = finished / "num_bits=5"
    home = finished / "num_bits=5"
    everywhere = [home / "config.json", *home.glob("*/config.json")]
    configs = {path: path.read_text() for path in everywhere}
    for changed, part in (
        ([home / "other" / "config.json"], "other: is of another experiment"),
        (everywhere, "config.json is not as it was when the run ended"),
    ):
        for path in changed:
            own = configs[path].replace("small_runs:WalkConfig", "no_such:WalkConfig")
            path.write_text(own)
        assert run(["report", str(finished), f"--output={tmp_path / 'no'}"]) == 1
        assert part in capsys.readouterr().err
    for path, whole in configs.items():
        path.write_text(whole)
    assert run(["inspect", str(finished)]) == 0
    printed = capsys.readouterr().out
    assert "num_bits=4,seed=2" in printed and printed.count("100/100") == 3


def test_a_life_that_ends_before_it_can_say_so_is_stopped(tmp_path, fresh_imports):
    """As one that a signal ends while it imports: with 75, and nothing is lost."""
    mark = tmp_path / "begun"
    text = "import os, sys\nfrom walks import claims, get_config\n"
    text += f"mark, is_job = {str(mark)!r}, sys.argv[0].endswith('job.py')\n"
    text += "if is_job and not os.path.exists(mark):\n"
    text += "    open(mark, 'w').close()\n    os._exit(75)\n"
    (experiment_file(tmp_path).parent / "leaving.py").write_text(text)
    workdir = tmp_path / "sweep"
    command = [f"--config={tmp_path / 'leaving.py'}", f"--workdir={workdir}"]
    ends = {"stopped": (1, "stopped"), "finished": (0, "1 of 1 claims hold")}
    for state, end in ends.items():
        code, _, told = typed(sweep, *command)
        (found,) = jobs(workdir).values()
        assert (code, found["note"]) == end, told
        assert found["state"] == state


def test_the_launcher_may_be_killed_at_any_moment(tmp_path, fresh_imports):
    """Its job saves and ends, and the same command goes on with it."""
    workdir, grid = tmp_path / "sweep", ["--grid=task.num_bits=4,5", *LONG]
    for number, attempt in ((signal.SIGTERM, 1), (signal.SIGKILL, 2)):
        process = start("launch.sweep", *arguments(workdir, *grid))
        record = Record(SweepDirectory(workdir), planned(workdir, process))
        run = RunDirectory(workdir / "num_bits=4" / "run")
        while run.last_step() <= 0 or record.read().attempt < attempt:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.02)
        process.send_signal(number)
        said = process.communicate()[0]
        if number == signal.SIGTERM:
            assert process.returncode == 75, said
            assert "stopped; 1 stopped, 1 planned; the same command continues" in said
    code, _, told = swept(workdir, *grid)
    assert code == 0, told
    found = jobs(workdir)
    assert [job["state"] for job in found.values()] == ["finished"] * 2
    assert [job["attempts"] for job in found.values()] == [3, 1]
    name = "num_bits=4"
    assert contents(workdir / name) == undisturbed(workdir, name, tmp_path / "run")


def test_what_fails_harms_no_other_job(tmp_path):
    """One diverges, the others finish; started again it fails again."""
    workdir = tmp_path / "sweep"
    field = "runs.run.hypers.learning_rate"
    grid = [f"--grid={field}=1e30,1e-3,2e-3", "--config.runs.run.log_every=1"]
    code, _, told = swept(workdir, *grid)
    last = told.splitlines()[-1]
    assert code == 1, told
    assert last.startswith("error: 2 finished, 1 failed; learning_rate=1e30: "), told
    found = jobs(workdir)
    assert "diverged" in found["learning_rate=1e30"]["note"]
    assert found["learning_rate=1e30"]["diverged"] == 2
    assert found["learning_rate=2e-3"]["state"] == "finished"
    code, out, told = typed(status, workdir, "--relaunch=failed")
    assert code == 1 and out == "1 job started again\n", told
    found = jobs(workdir)
    assert found["learning_rate=1e-3"]["attempts"] == 1
    assert found["learning_rate=1e30"]["attempts"] == 2


def test_a_file_in_the_place_of_a_job_is_refused_before_any_is_launched(tmp_path):
    workdir = tmp_path / "sweep"
    grid = ["--grid=runs.run.hypers.learning_rate=1e-3,2e-3"]
    assert swept(workdir, "--engine=none", *grid)[0] == 0
    blocked = workdir / "learning_rate=1e-3" / "run"
    blocked.parent.mkdir()
    blocked.write_text("")
    code, _, told = swept(workdir, *grid)
    assert code == 2 and "learning_rate=1e-3" in told.splitlines()[-1], told
    assert jobs(workdir)["learning_rate=2e-3"]["state"] == "planned"


def test_a_job_that_is_killed_is_told(tmp_path):
    workdir = tmp_path / "sweep"
    process = start("launch.sweep", *arguments(workdir, *LONG))
    record = Record(SweepDirectory(workdir), planned(workdir, process))
    while record.read() is None or not (workdir / "walks/run/checkpoints/0").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    assert states(workdir) == {"walks": "running"}
    whole = (workdir / "sweep.json").read_bytes()
    other = [*LONG, "--config.runs.other.hypers.learning_rate=0.5"]
    for second in (other, [*other, "--engine=none"]):
        ended, _, told = swept(workdir, *second)
        assert ended == 1 and "jobs: in use by process" in told, told
        assert (workdir / "sweep.json").read_bytes() == whole
    os.kill(record.read().process, signal.SIGKILL)
    said = process.communicate()[0]
    assert process.returncode == 1, said
    assert jobs(workdir)["walks"]["note"] == "killed by SIGKILL (out of memory?)"
    record.write(dataclasses.replace(record.read(), code=None, ended="", error=""))
    assert states(workdir) == {"walks": "lost"}  # as if the launcher had been as well


def planned(workdir, process):
    """The job of a sweep that is being launched."""
    while not (workdir / "sweep.json").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    return SweepDirectory(workdir).read().jobs[0]


LIFE = Life(1, "here", 1, "", "2026-01-01T00:00:00+00:00", step=7, idle=0)


@pytest.mark.parametrize(
    ("code", "step", "restarts", "is_local", "idle"),
    [
        (75, 7, "1", False, 1),  # started again by the queue, no step in between
        (None, 7, "1", False, 1),  # killed
        (75, 8, "1", False, 0),  # there was a step
        (75, 7, "0", False, 0),  # submitted again by a person
        (75, 7, None, False, 1),  # an engine that does not tell
        (75, 7, None, True, 0),
        (75, 7, "1", True, 0),  # within somebody's allocation
        (1, 7, None, False, 0),
    ],
)
def test_lives_without_a_step_are_counted(
    code, step, restarts, is_local, idle, monkeypatch
):
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    if restarts is not None:
        monkeypatch.setenv("SLURM_JOB_ID", "12")
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    life = new_life(dataclasses.replace(LIFE, code=code), step, is_local)
    assert (life.attempt, life.idle) == (2, idle)
    assert life.queued_as == ("12" if restarts and not is_local else "")


def test_a_job_that_never_gets_to_a_step_fails(tmp_path):
    workdir = tmp_path / "sweep"
    assert swept(workdir, "--engine=none")[0] == 0
    record = Record(SweepDirectory(workdir), SweepDirectory(workdir).read().jobs[0])
    record.path.mkdir(parents=True)
    record.write(dataclasses.replace(LIFE, step=0, idle=1))
    code, _, told = typed(launch_job, workdir, 0)
    assert code == 0  # of the door; the life's own is in its record
    assert "2 lives in a row without a step on disk" in told
    assert (record.read().code, states(workdir)) == (1, {"walks": "failed"})
    code, _, told = typed(launch_job, workdir, 1)
    assert code == 2 and "INDEX=1: must be in [0, 0]" in told
    code, _, told = typed(launch_job, tmp_path, 0)
    assert code == 2 and "must be the directory of a sweep" in told


def test_a_job_from_another_commit_warns(tmp_path, monkeypatch):
    workdir = tmp_path / "sweep"
    assert swept(workdir, "--engine=none")[0] == 0
    monkeypatch.setattr(launch_job, "git_commit", lambda: "abc")
    monkeypatch.setattr(launch_job, "run_job", lambda home, job: 2)
    _, _, told = typed(launch_job, workdir, 0)
    assert told.startswith("warning: the sweep was planned at commit")
    assert "this is abc" in told and states(workdir) == {"walks": "failed"}


TABLE = """\
  job  state     members         step   accuracy  seen       host  lives  note
  a    finished  4               20/20  0.990     3 min ago  h     2
  b    running   4 (1 diverged)  5/20   0.500     0 s ago    h     1
  c    queued    4               0/20   -         -          -     0      BeginTime
  d    lost      4               5/20   0.500     2 d ago    h     1      {killed}
  e    failed    4               5/20   0.500     2 h ago    h     1      {cut}..
5 jobs, 20 members: 1 finished, 1 running, 1 queued, 1 failed, 1 lost
"""


def test_the_table_of_states():
    found = [
        Row("a", "finished", 4, 0, 20, 20, 0.99, 820.0, "h", 2, ""),
        Row("b", "running", 4, 1, 5, 20, 0.5, 1000.0, "h", 1, ""),
        Row("c", "queued", 4, 0, 0, 20, None, None, "", 0, "BeginTime"),
        Row("d", "lost", 4, 0, 5, 20, 0.5, 1000.0 - 172800, "h", 1, KILLED),
        Row("e", "failed", 4, 0, 5, 20, 0.5, 1000.0 - 7200, "h", 1, "x" * 500),
    ]
    expected = TABLE.format(killed=KILLED, cut="x" * 160)
    assert "\n".join(text(found, 1000.0)) + "\n" == expected


def rows_with(home, file, content):
    """What is told of the jobs while a file of theirs holds something else."""
    whole = file.read_text()
    try:
        file.write_text(content(whole))
        return rows(SweepDirectory(home), {})
    finally:
        file.write_text(whole)


def test_a_damaged_file_is_told_of_its_job_alone(finished):
    file = finished / "num_bits=5" / "run" / "finished.json"
    found = rows_with(finished, file, lambda whole: "{")
    assert [row.state for row in found] == ["finished", "finished", "failed"]
    assert "num_bits=5/run/finished.json: damaged" in found[2].note


def test_records_that_are_not_as_they_were_are_no_score(finished):
    file = finished / "num_bits=5" / "run" / "metrics.jsonl"
    other = partial(re.sub, r'("greedy/accuracy": ?)\[[^,]+', r"\1[0.125")
    found = rows_with(finished, file, other)
    assert [row.state for row in found] == ["finished", "finished", "failed"]
    assert found[2].accuracy is None and "not as it was" in found[2].note


def test_curves_that_come_too_late_are_told(finished):
    grid = ["--grid=task.num_bits=4,5", "--grid=seed=0,1,2"]
    code, _, told = swept(finished, *grid, "--config.log=tensorboard", "--dry_run")
    assert code == 0, told
    assert told.count("has runs that ended without curves of tensorboard; `") == 3


def test_a_damaged_life_is_told_and_the_job_goes_on(finished):
    file = finished / "jobs" / "num_bits=5" / "life.json"
    found = rows_with(finished, file, lambda whole: "{")[2]
    assert (found.state, found.attempts) == ("finished", 0)
    assert "num_bits=5/life.json: damaged" in found.note


def test_chains_are_analysed_when_all_are_done(tmp_path):
    workdir = tmp_path / "sweep"
    code, _, told = swept(workdir, "--chains", f"--report={tmp_path / 'out'}")
    assert code == 0, told
    assert states(workdir) == {"walks,run": "finished", "walks,other": "finished"}
    assert read_json(workdir / "walks" / "claims.json")[0]["holds"]
    assert (tmp_path / "out" / "report.md").exists()
    assert experiment_file(tmp_path).exists()
