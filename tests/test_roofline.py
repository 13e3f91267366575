"""Counted work of programs whose products can be told by hand."""

import jax
import jax.numpy as jnp
import pytest

from parity_jax.blocks import at_most
from parity_jax.mesh import MeshConfig, mesh_of
from parity_jax.runs.roofline import Work, products, roofline_seconds

LEFT, RIGHT = jnp.ones((3, 4)), jnp.ones((4, 4))
ONE = 2 * 3 * 4 * 4  # FLOPs of LEFT @ RIGHT
BYTES = 4 * (12 + 16 + 12)


def work(f, *args, num_devices=1) -> Work:
    return products(jax.make_jaxpr(f)(*args).jaxpr, num_devices)


def scanned(x, y):
    return jax.lax.scan(lambda x, _: (x @ y, None), x, length=5)[0]


def drawn(x, y, num):
    with at_most(7):
        return jax.lax.fori_loop(0, num, lambda _, x: scanned(x, y), x)


def test_turns_of_loops_are_counted():
    assert work(jnp.matmul, LEFT, RIGHT) == ({"float32": ONE}, BYTES)
    assert work(scanned, LEFT, RIGHT) == ({"float32": 5 * ONE}, 5 * BYTES)
    assert work(drawn, LEFT, RIGHT, 2) == ({"float32": 35 * ONE}, 35 * BYTES)
    assert work(jax.jit(drawn), LEFT, RIGHT, 2).flops["float32"] == 35 * ONE


def test_gradients_members_and_dtypes():
    def loss(x, y):
        return jax.checkpoint(jnp.matmul)(x, y).sum()

    assert work(jax.grad(loss, (0, 1)), LEFT, RIGHT).flops["float32"] == 3 * ONE
    members = jax.vmap(jnp.matmul, (0, None))
    assert work(members, jnp.ones((6, 3, 4)), RIGHT).flops["float32"] == 6 * ONE
    narrow = (x.astype(jnp.bfloat16) for x in (LEFT, RIGHT))
    assert work(jnp.matmul, *narrow) == ({"bfloat16": ONE}, BYTES // 2)


def test_devices_share_what_is_not_their_own():
    mesh = mesh_of(MeshConfig(), jax.devices()[:2])
    own = jax.shard_map(
        jnp.matmul,
        mesh=mesh,
        in_specs=(jax.P("member"), jax.P()),
        out_specs=jax.P("member"),
    )
    both = jnp.ones((6, 4))
    assert work(own, both, RIGHT, num_devices=2).flops["float32"] == ONE
    assert work(jnp.matmul, both, RIGHT, num_devices=2).flops["float32"] == ONE


@pytest.mark.parametrize(("bandwidth", "seconds"), [(BYTES / 3, 3.0), (BYTES, 2.0)])
def test_the_longer_of_computing_and_moving(bandwidth, seconds):
    found = work(jnp.matmul, LEFT, RIGHT)
    assert roofline_seconds(found, {"float32": ONE / 2}, bandwidth) == seconds
