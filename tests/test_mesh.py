"""A member over several devices: the numbers of one, spread as the rules say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from flax.core import FrozenDict
from tiny import tiny_experiment

from parity_jax.config import ConfigError
from parity_jax.mesh import MeshConfig, mesh_of, spec_of
from parity_jax.models import llama
from parity_jax.population import PopulationConfig
from parity_jax.runs import make_program, resolve, run_experiment
from parity_jax.tasks import ParityConfig
from parity_jax.types import path_text

TOLERANCE = 1e-5
ONE = FrozenDict({"seed": (0,)})


def on_eight_devices(*arguments):
    """What a part of eight_devices.py prints, in a process of its own."""
    script = Path(__file__).parent / "eight_devices.py"
    command = [sys.executable, str(script), *map(str, arguments)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_mesh_gives_what_one_device_does():
    found = on_eight_devices("meshes")
    assert len(found) == 6
    for name, numbers in found.items():
        assert numbers["params"] < TOLERANCE, name
        assert numbers["loss"] < TOLERANCE, name
        assert numbers["moved"] > 1e-3  # it did train
        assert numbers["share"] < 0.2  # 1/8 but for norms and what does not divide


def test_two_members_of_four_devices_each_are_two_runs_alone():
    found = on_eight_devices("members")
    assert found["params"] < TOLERANCE
    assert found["seeds"] > 0.1


def test_saved_on_eight_devices_continued_on_eight_two_and_one(tmp_path):
    found = on_eight_devices("restored", tmp_path)
    assert len(found) == 2
    assert max(found.values()) < TOLERANCE


@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=2), MeshConfig(tensor=2)])
def test_a_spread_experiment_with_numbers_of_its_own_is_run(tmp_path, mesh):
    """Pre-training and GRPO; what they read is found as for members on one device."""
    both = PopulationConfig()
    spread = tiny_experiment(mesh=mesh, axes=ONE, population=both)
    alone = tiny_experiment(axes=ONE)
    for name, run in resolve(spread).items():
        plain = make_program(resolve(alone)[name])
        assert make_program(run).numbers_read() == plain.numbers_read()
    if mesh.fsdp > 1:
        assert run_experiment(spread, tmp_path / "run", quiet=True)


def test_rules_name_every_large_parameter():
    """What no rule names is whole on every device: norms, and learned positions."""
    mesh = jax.sharding.AbstractMesh((1, 2, 2), ("member", "fsdp", "tensor"))
    task = ParityConfig(4).make()
    for scan in (False, True):
        for qkv in (False, True):
            cfg = llama(2, 32, num_heads=4, num_kv_heads=2, scan=scan, qkv_bias=qkv)
            params = jax.eval_shape(cfg.make(task).init, jax.random.key(0))
            for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
                name = path_text(path)
                is_whole = not any(spec_of(name, leaf.shape, mesh))
                is_small = name.endswith("scale") or leaf.shape[0] == task.vocab_size
                assert is_whole == name.endswith("scale") or is_small, name


def test_too_few_devices_are_refused():
    experiment = tiny_experiment(mesh=MeshConfig(fsdp=64))
    with pytest.raises(ConfigError, match="mesh='fsdp=64 x tensor=1': must be at most"):
        make_program(resolve(experiment)["pretrain"])
    with pytest.raises(ConfigError, match="tensor=0"):
        MeshConfig(tensor=0)
    assert mesh_of(MeshConfig(2, 1), [*range(5)]).devices.shape == (2, 2, 1)
