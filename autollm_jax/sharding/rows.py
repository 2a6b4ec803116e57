"""Reading and writing slots of a batch's rows, each row by itself.

If rows are split over devices, an index that names the row too (`x_BS[jnp.arange(B), slot_B]`)
makes the compiler gather the rows over all devices at every token. The functions here avoid the
gather.
"""

import jax
import jax.numpy as jnp


def read(x_BS: jax.Array, slot_B: jax.Array) -> jax.Array:
    """Return one slot of each row, x[b, slot[b]]."""
    places_B1 = slot_B[:, None]
    return jnp.take_along_axis(x_BS, places_B1, axis=1, mode="promise_in_bounds")[:, 0]


def write(x_BS: jax.Array, slots_BC: jax.Array, values_BC: jax.Array, axis: int = 1) -> jax.Array:
    """Set slots of each row, x[b, slots[b, c]] = values[b, c]; ignore slots beyond the end.

    Args:
      x_BS: the rows; more dimensions than S are allowed.
      slots_BC: the slots; C may be missing.
      values_BC: the values, with the further dimensions of x_BS.
      axis: the index of S in x_BS and of C in values_BC.

    Returns:
      The updated rows.
    """

    def one_row(x_S, slots_C, values_C):
        place = (*(slice(None),) * (axis - 1), slots_C)
        return x_S.at[place].set(values_C.astype(x_S.dtype), mode="drop")

    return jax.vmap(one_row)(x_BS, slots_BC, values_BC)
