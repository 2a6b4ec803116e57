import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autollm_jax.models.product import product

SPECS = ["BTD,DF->BTF", "BTKGA,BSKA->BKGTS", "BKGTS,BSKA->BTKGA", "BTHA,HAD->BTD", "BTD,FD->BTF"]
SIZES = dict(zip("BTDFKGASH", range(2, 11), strict=True))


def operands(spec):
    terms = spec.split("->")[0].split(",")
    shapes = [[SIZES[letter] for letter in term] for term in terms]
    return [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("spec", SPECS)
def test_value_and_gradients_are_einsums(spec):
    a, b = operands(spec)

    def value_and_gradients(multiply):
        loss = jax.value_and_grad(lambda a, b: jnp.sin(multiply(a, b)).sum(), (0, 1))
        return jax.jit(loss)(a, b)

    ours = value_and_gradients(lambda a, b: product(spec, a, b, "float32"))
    exact = value_and_gradients(lambda a, b: jnp.einsum(spec, a, b))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), ours, exact)


@pytest.mark.parametrize("spec", SPECS)
def test_a_bfloat16_result_is_the_rounded_sum_and_gradients_have_the_operands_types(spec):
    a, b = operands(spec)
    rounded, whole = (product(spec, a, b, "bfloat16", out) for out in ("bfloat16", "float32"))
    assert rounded.dtype == "bfloat16"
    np.testing.assert_allclose(rounded.astype("float32"), whole, rtol=2**-8)
    loss = jax.grad(lambda a, b: product(spec, a, b, "bfloat16", "bfloat16").sum(), (0, 1))
    assert [g.dtype.name for g in loss(a.astype("bfloat16"), b)] == ["bfloat16", "float32"]


def test_gradients_of_low_precision_operands_are_float32():
    a, b = operands(SPECS[0])
    gradients = jax.grad(lambda a, b: product(SPECS[0], a, b, "bfloat16").sum(), (0, 1))(a, b)
    assert {g.dtype for g in gradients} == {jnp.dtype("float32")}


def on_cpu(jitted, *arguments):
    """Return the program for a CPU, whatever the tests run on."""
    return jitted.trace(*arguments).lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize(
    ("rows", "dtype", "few"),
    [(1, "float32", True), (16, "float32", True), (17, "float32", False),
     (48, "bfloat16", True), (49, "bfloat16", False)],
)  # fmt: skip
def test_of_few_rows_a_cpu_reads_the_matrix_as_the_left_operand(rows, dtype, few):
    a, b = jnp.ones((rows, 1, 5)), jnp.ones((7, 5))
    text = on_cpu(jax.jit(lambda a, b: product("BTD,FD->BTF", a, b, dtype)), a, b)
    left = {"float32": "(tensor<7x5xf32>, tensor<", "bfloat16": "(tensor<7x5xbf16>, tensor<"}[dtype]
    assert (left in text.split("dot_general")[1]) == few
    assert ("optimization_barrier" in text) == few


@pytest.mark.parametrize(("dtype", "multiplied"), [("bfloat16", 2), ("float32", 1)])
def test_a_cpu_multiplies_one_row_in_bfloat16_as_two(dtype, multiplied):
    a, b = jax.random.normal(jax.random.key(0), (1, 1, 5)), jnp.ones((7, 5))
    rows = jax.jit(lambda a, b: product("BTD,FD->BTF", a, b, dtype))
    assert f"tensor<7x{multiplied}x1xf32>" in on_cpu(rows, a, b)
    np.testing.assert_allclose(rows(a, b), np.full((1, 1, 7), a.sum()), rtol=2e-2)
