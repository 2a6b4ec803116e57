"""The model's matrix product: operands of low precision, f32 sums, forward and backward."""

import functools

import jax
import jax.numpy as jnp


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

    if out == "float32":
        return exact(a, b)

    def rounded(a, b):
        return exact(a, b).astype(out)

    def direct(a, b):
        return jnp.einsum(spec, a, b, preferred_element_type=out)

    # Accelerators sum in f32 whatever they return, and devices add what is returned. The CPU has
    # no fast product that returns bfloat16.
    return jax.lax.platform_dependent(a, b, cpu=rounded, default=direct)


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
