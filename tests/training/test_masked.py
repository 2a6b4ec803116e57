import jax.numpy as jnp
import numpy as np

from autollm_jax.training.masked import divide, masked_mean, masked_sum


def test_values_outside_the_mask_do_not_count_even_nan():
    x, mask = jnp.array([1.0, jnp.nan, 3.0]), jnp.array([1, 0, 1])
    assert masked_mean(x, mask) == 2.0


def test_an_empty_mask_gives_zero():
    assert masked_mean(jnp.ones(3), jnp.zeros(3)) == 0.0


def test_sums_and_counts_of_parts_make_the_mean_of_the_whole():
    x, mask = np.arange(10.0), np.arange(10) % 3 > 0
    parts = [masked_sum(jnp.array(x[s]), jnp.array(mask[s])) for s in (slice(0, 2), slice(2, 10))]
    total = tuple(sum(values) for values in zip(*parts, strict=True))
    assert divide(total) == x[mask].mean()
