import jax
import jax.numpy as jnp
import numpy as np

from autollm_jax.training.likelihood import chosen


def test_the_gradient_is_that_of_taking_along_the_axis():
    logits_BTV = jax.random.normal(jax.random.key(0), (2, 3, 7))
    ids_BT = jax.random.randint(jax.random.key(1), (2, 3), 0, 7)
    weight_BT = jax.random.normal(jax.random.key(2), (2, 3))

    def plain(logits_BTV, ids_BT):
        return jnp.take_along_axis(logits_BTV, ids_BT[..., None], axis=-1)[..., 0]

    def gradient(pick):
        return jax.grad(lambda x_BTV: (pick(x_BTV, ids_BT) * weight_BT).sum())(logits_BTV)

    np.testing.assert_array_equal(chosen(logits_BTV, ids_BT), plain(logits_BTV, ids_BT))
    np.testing.assert_array_equal(gradient(chosen), gradient(plain))
    assert "scatter" not in jax.jit(lambda: gradient(chosen)).lower().as_text()
    assert "scatter" in jax.jit(lambda: gradient(plain)).lower().as_text()
