"""The model's matrix product: operands of low precision, f32 sums, forward and backward."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def product(spec: str, a: jax.Array, b: jax.Array, dtype: str) -> jax.Array:
    """Contract two arrays, reading them in `dtype` and accumulating in f32.

    The gradients are products of the same kind. JAX's own gradient would multiply f32 cotangents
    with operands of `dtype`, for which no backend has a fast kernel, and round the result to
    `dtype`.

    Args:
      spec: einsum, such as "AB,BC->AC"; every letter is in two or three of the three terms.
      a: left operand, f32.
      b: right operand, f32.
      dtype: "float32" or "bfloat16".

    Returns:
      The product, f32.
    """
    return _forward(spec, a, b, dtype)[0]


def _forward(spec, a, b, dtype):
    a, b = a.astype(dtype), b.astype(dtype)
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32), (a, b)


def _backward(spec, dtype, residuals, cotangent):
    a, b = residuals
    inputs, output = spec.split("->")
    left, right = inputs.split(",")
    cotangent = cotangent.astype(dtype)
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    to_left = einsum(f"{output},{right}->{left}", cotangent, b)

    def straight(a, cotangent):
        return einsum(f"{left},{output}->{right}", a, cotangent)

    if b.ndim > 2:
        return to_left, straight(a, cotangent)
    sizes = dict(zip(right, b.shape, strict=True))
    narrow_first = "".join(sorted(right, key=sizes.__getitem__))

    def turned(a, cotangent):
        # The CPU's kernel wants its left operand transposed, which is cheap for the narrow one. The
        # barrier keeps the compiler from turning the product around again.
        made = einsum(f"{left},{output}->{narrow_first}", a, cotangent)
        return jnp.einsum(f"{narrow_first}->{right}", jax.lax.optimization_barrier(made))

    return to_left, jax.lax.platform_dependent(a, cotangent, cpu=turned, default=straight)


product.defvjp(_forward, _backward)
