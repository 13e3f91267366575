"""A wheel of the project, alone in an environment outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOY = ("toy_experiment.py", "toy_stage.py", "toy_task.py")


def typed(*command, cwd):
    """What a command prints; it sees nothing of the checkout."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_runs_an_experiment_outside_the_checkout(tmp_path):
    source, env, work = (tmp_path / name for name in ("source", "env", "work"))
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "parity_jax", source / "parity_jax", ignore=ignored)
    shutil.copytree(ROOT / "launch", source / "launch", ignore=ignored)
    shutil.copytree(ROOT / "tests/outside", source / "tests", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    offline = ("--no-index", "--no-deps")
    build = (*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir=.", ".")
    typed(*build, cwd=source)
    (wheel,) = source.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "parity_jax/py.typed" in names
    inside = {name.partition("/")[0] for name in names}
    assert {n for n in inside if not n.endswith(".dist-info")} == {"parity_jax"}

    typed(sys.executable, "-m", "venv", "--without-pip", str(env), cwd=tmp_path)
    python = str(env / "bin/python")
    install = (*pip, f"--python={python}", "install", *offline, str(wheel))
    typed(*install, cwd=tmp_path)
    (site,) = env.glob("lib/python*/site-packages")
    others = sysconfig.get_path("purelib")  # the dependencies; no .pth of theirs counts
    (site / "dependencies.pth").write_text(others + "\n")

    work.mkdir()
    for name in TOY:
        shutil.copy(ROOT / "tests/outside" / name, work / name)
    where = "import parity_jax; print(parity_jax.__file__)"
    assert typed(python, "-c", where, cwd=work).startswith(str(site))
    tiny = [f"--config.runs.imitate.{k}=2" for k in ("num_steps", "eval_every")]
    command = ["run", "--config=toy_experiment.py", "--workdir=out", "--only=imitate"]
    typed(str(env / "bin/parity-jax"), *command, *tiny, cwd=work)
    assert (work / "out/imitate/finished.json").exists()
