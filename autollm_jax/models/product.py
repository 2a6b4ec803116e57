"""The model's matrix product: operands of low precision, f32 sums, forward and backward."""

import functools
import math

import jax
import jax.numpy as jnp

# Up to so many rows of a type a CPU reads the matrix as the left operand of a product.
FEW_ROWS = {"float32": 16, "bfloat16": 48}


def product(spec: str, a: jax.Array, b: jax.Array, dtype: str, out: str = "float32") -> jax.Array:
    """Contract two arrays, reading them in `dtype` and accumulating in f32.

    The gradients are products of the same kind. JAX's own gradient would multiply f32 cotangents
    with operands of `dtype`, for which no backend has a fast kernel, and round the result to
    `dtype`.

    Args:
      spec: einsum, such as "AB,BC->AC"; every letter is in two or three of the three terms.
      a: left operand, f32 or bfloat16.
      b: right operand, f32 or bfloat16.
      dtype: "float32" or "bfloat16".
      out: type of the result. On a mesh the partial sums of devices are added in this type.

    Returns:
      The product. Its gradients have the types of `a` and `b`.
    """
    return _product(spec, (dtype, out, a.dtype.name, b.dtype.name), a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(spec, types, a, b):
    return _forward(spec, types, a, b)[0]


def _contract(spec, a, b, out):
    """Contract with f32 sums."""

    def exact(a, b):
        return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)

    on_cpu = _of_few_rows(spec, a, b.shape) or exact
    if out == "float32":
        if on_cpu is exact:
            return exact(a, b)
        return jax.lax.platform_dependent(a, b, cpu=on_cpu, default=exact)

    def rounded(a, b):
        return on_cpu(a, b).astype(out)

    def direct(a, b):
        return jnp.einsum(spec, a, b, preferred_element_type=out)

    # Accelerators sum in f32 whatever they return, and devices add what is returned. The CPU has
    # no fast product that returns bfloat16.
    return jax.lax.platform_dependent(a, b, cpu=rounded, default=direct)


def _of_few_rows(spec, a, b_shape):
    """Return the product of few rows and a matrix, contracted axis last, with the matrix left.

    The CPU's kernel copies its right operand into another order, and reads its left one as it lies.
    The barrier keeps the compiler from turning the product around again. One row in bfloat16 is
    multiplied as two, since XLA's code for one is much slower. None for other products.
    """
    inputs, output = spec.split("->")
    left, right = inputs.split(",")
    rows = math.prod(n for letter, n in zip(left, a.shape, strict=True) if letter in output)
    if len(b_shape) > 2 or right[-1] in output or rows > FEW_ROWS[a.dtype.name]:
        return None
    matrix_first = right[0] + output.replace(right[0], "")

    def turned(a, b):
        pair = rows == 1 and a.dtype == "bfloat16" and left[0] == output[0]
        if pair:
            a = jnp.pad(a, [(0, 1), *[(0, 0)] * (a.ndim - 1)])
        made = jnp.einsum(f"{right},{left}->{matrix_first}", b, a, preferred_element_type="float32")
        made = jnp.einsum(f"{matrix_first}->{output}", jax.lax.optimization_barrier(made))
        return made[:1] if pair else made

    return turned


def _forward(spec, types, a, b):
    dtype, out, _, _ = types
    a, b = a.astype(dtype), b.astype(dtype)
    return _contract(spec, a, b, out), (a, b)


def _backward(spec, types, residuals, cotangent):
    dtype, _, a_type, b_type = types
    a, b = residuals
    inputs, output = spec.split("->")
    left, right = inputs.split(",")
    cotangent = cotangent.astype(dtype)
    to_left = _contract(f"{output},{right}->{left}", cotangent, b, a_type)

    def straight(a, cotangent):
        return _contract(f"{left},{output}->{right}", a, cotangent, b_type)

    if b.ndim > 2:
        return to_left, straight(a, cotangent)
    sizes = dict(zip(right, b.shape, strict=True))
    narrow_first = "".join(sorted(right, key=sizes.__getitem__))

    def turned(a, cotangent):
        # The CPU's kernel wants its left operand transposed, which is cheap for the narrow one. The
        # barrier keeps the compiler from turning the product around again.
        made = _contract(f"{left},{output}->{narrow_first}", a, cotangent, b_type)
        return jnp.einsum(f"{narrow_first}->{right}", jax.lax.optimization_barrier(made))

    return to_left, jax.lax.platform_dependent(a, cotangent, cpu=turned, default=straight)


_product.defvjp(_forward, _backward)
