"""Writes the texts in `programs/`: small programs, compiled for two accelerators that are not here.

    python -m tests.compilers.write_programs

Needs requirements-compilers.txt. The texts are committed, so that the tests need no compiler.

loop      five products in a scan, a parameter gathered in each step
sums      a gradient summed over devices, in three microbatches
tokens    a loop of unknown length that gathers a parameter and sums an activation at every step
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from autollm_jax.compilers.targets import devices_of
from autollm_jax.sharding.mesh import MeshShape, make_mesh

FOLDER = Path(__file__).with_name("programs")
COMPILERS = {"v5e": "tpu:v5e:2x4", "h100": "gpu:h100:1x8"}
WIDTH, ROWS, STEPS, PIECES = 1024, 512, 5, 3


def loop(params, x_BD):
    """Multiply with the same matrix five times."""

    def step(x_BD, _):
        return jnp.tanh(x_BD @ params), None

    return jax.lax.scan(step, x_BD, None, length=STEPS)[0]


def sums(params, x_NBD):
    """Return the gradient of a product's squares, summed over microbatches."""

    def loss(params, x_BD):
        y_BD = jax.lax.with_sharding_constraint(x_BD @ params, PartitionSpec("fsdp", None))
        return (y_BD.astype(jnp.float32) ** 2).sum()

    def step(total, x_BD):
        return total + jax.grad(loss)(params, x_BD), None

    return jax.lax.scan(step, jnp.zeros_like(params), x_NBD)[0]


def tokens(params, x_BD, limit):
    """Multiply until the sum passes a limit."""

    def going(carry):
        return carry[1] < limit

    def step(carry):
        x_BD, total = carry
        x_BD = jnp.tanh(x_BD @ params)
        return x_BD, total + x_BD.astype(jnp.float32).sum()

    return jax.lax.while_loop(going, step, (x_BD, jnp.float32(0)))


def compiled(name: str, compiler: str):
    """Compile one of the programs above for a compiler of `COMPILERS`."""
    mesh = make_mesh(MeshShape(1, 4, 2), devices_of(COMPILERS[compiler]))

    def shape(sizes, spec, kind=jnp.bfloat16):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(sizes, kind, sharding=sharding)

    matrix, rows = shape((WIDTH, WIDTH), ("fsdp", "tensor")), shape((ROWS, WIDTH), ("fsdp", None))
    pieces = shape((PIECES, ROWS, WIDTH), (None, "fsdp", None))
    given = {
        "loop": (loop, matrix, rows),
        "sums": (sums, matrix, pieces),
        "tokens": (tokens, matrix, rows, shape((), (), jnp.float32)),
    }
    function, *shapes = given[name]
    with jax.set_mesh(mesh):
        return jax.jit(function).lower(*shapes).compile()


def text_of(name: str, compiler: str) -> str:
    """Return a program's text without the places in source files and the tables of them."""
    text = compiled(name, compiler).as_text()
    text = re.sub(r"\n(FileNames|FunctionNames|FileLocations|StackFrames)\n(\d.*\n)*", "", text)
    return re.sub(r" (source_\w+|stack_frame_id)=(\"[^\"]*\"|\d+)", "", text)


if __name__ == "__main__":
    for name in ("loop", "sums", "tokens"):
        for compiler in COMPILERS:
            (FOLDER / f"{name}_{compiler}.txt").write_text(text_of(name, compiler))
