"""Reading and writing places of a batch's rows.

Row by row: where rows are split over devices, indices that name the row as well
(`x_BS[jnp.arange(B), slot_B]`) make the compiler gather them over all devices, at every token.
"""

import jax
import jax.numpy as jnp


def read(x_BS: jax.Array, slot_B: jax.Array) -> jax.Array:
    """Take one place of each row: x[b, slot[b]]."""
    places_B1 = slot_B[:, None]
    return jnp.take_along_axis(x_BS, places_B1, axis=1, mode="promise_in_bounds")[:, 0]


def write(x_BS: jax.Array, slots_BC: jax.Array, values_BC: jax.Array, axis: int = 1) -> jax.Array:
    """Set places of each row, x[b, slots[b, c]] = values[b, c]; what is beyond the end is dropped.

    Both may have further dimensions beside S and C, or no C; `axis` is where S and C stand.
    """

    def one_row(x_S, slots_C, values_C):
        place = (*(slice(None),) * (axis - 1), slots_C)
        return x_S.at[place].set(values_C.astype(x_S.dtype), mode="drop")

    return jax.vmap(one_row)(x_BS, slots_BC, values_BC)
