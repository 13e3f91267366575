"""Templates for engines that are not here, by the tools that check them."""

import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from small_sweeps import states, swept

from launch import engines, sweep
from parity_jax.runs.interrupt import EX_TEMPFAIL

TEMPLATES = Path(engines.__file__).parent / "templates"
KUBERNETES = yaml.safe_load((TEMPLATES / "kubernetes.yaml").read_text())


def valid(job):
    kubernetes_validate.validate(job, "1.31", strict=True)


def test_kubernetes_starts_again_what_has_saved():
    valid(KUBERNETES)
    ignored, _, failed = KUBERNETES["spec"]["podFailurePolicy"]["rules"]
    assert ignored["action"] == "Ignore"
    assert ignored["onExitCodes"]["values"] == [EX_TEMPFAIL]
    assert (failed["action"], failed["onExitCodes"]["values"]) == ("FailIndex", [2])
    with pytest.raises(kubernetes_validate.ValidationError):
        valid(
            KUBERNETES | {"spec": KUBERNETES["spec"] | {"completionsMode": "Indexed"}}
        )


@pytest.mark.parametrize("path", ["launch/templates/tpu_pod.sh", "tests/*.sh"])
def test_scripts_are_sound(path):
    root = TEMPLATES.parents[1]
    files = [str(file) for file in root.glob(path)]
    program = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run(
        [program, *files], check=False, capture_output=True, text=True
    )
    assert files and done.returncode == 0, done.stdout


def test_a_host_of_a_pod_does_its_part(tmp_path):
    """The second of two hosts does the second and the fourth of five jobs."""
    workdir = tmp_path / "sweep"
    grid = "--grid=task.num_bits=4,5,6,7,8"
    assert swept(workdir, "--engine=none", grid)[0] == 0
    place = tmp_path / "checkout"
    (place / ".venv/bin").mkdir(parents=True)
    python = place / ".venv/bin/python"
    python.write_text(FAKE.format(python=sys.executable, log=place / "log"))
    python.chmod(0o755)
    script = shutil.copy(TEMPLATES / "tpu_pod.sh", place)
    env = {"TPU_HOST": "1", "TPU_HOSTS": "2", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([script, workdir], check=False, cwd=place, env=env)
    assert done.returncode == 1  # the fourth job fails
    lines = (place / "log").read_text().splitlines()
    expected = [f"-m launch.job {workdir} {n}" for n in (1, 1, 3)]
    assert lines == expected  # the first life of the second job exits with 75
    assert set(states(workdir).values()) == {"planned"}


FAKE = """#!/usr/bin/env bash
if [ "$1" = -c ]; then exec {python} "$@"; fi
echo "$@" >> {log}
case "$(grep -c '' {log})" in 1) exit 75 ;; 2) exit 0 ;; *) exit 1 ;; esac
"""


def test_profiles_are_settings():
    for name in ("gpu", "cpu"):
        profile = engines.read_profile(name, sweep.PROFILES)
        settings = engines.settings_of(profile, {"grace": 60})
        assert settings.engine == "slurm" and settings.grace == 60
        assert settings.slurm["partition"] == name and settings.slurm["time"] == "240"
    settings = engines.settings_of(
        profile, {"slurm": {"time": "10", "cpus_per_task": 1}}
    )
    assert dict(settings.slurm) == {
        "partition": "cpu",
        "cpus-per-task": "1",
        "time": "10",
    }
