import pytest

from autollm_jax.errors import UserError
from autollm_jax.models.scaling import scaled
from autollm_jax.models.transformer import TransformerConfig, parameter_count

BASE = TransformerConfig(
    vocab_size=1024, width=128, layers=4, heads=4, kv_heads=1, head_dim=32, mlp_width=352
)


@pytest.mark.parametrize("factor", [0.25, 0.5, 4.0])
def test_a_scaled_model_has_about_that_multiple_of_the_parameters(factor):
    found = parameter_count(scaled(BASE, factor)) / parameter_count(BASE)
    assert factor / 1.2 < found < factor * 1.2


def test_scaled_by_one_it_is_the_same():
    assert scaled(BASE, 1.0) == BASE


def test_a_factor_that_is_not_positive_is_refused():
    with pytest.raises(UserError, match="policy.scale"):
        scaled(BASE, 0)
