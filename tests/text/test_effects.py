"""Effects, read off a cheap table."""

from autollm_jax.text.effects import effects


def test_effects_say_what_helps(mixtures):
    (first, *_) = effects(mixtures[1])
    assert first.name == "source" and first.percent < 0


def test_effects_under_a_limit_are_those_at_equal_size(architectures):
    percents = {effect.name: effect.percent for effect in effects(architectures[0])}
    # More of everything is better in this table, but at equal size only depth is.
    assert percents["layers"] < 0 < percents["width"]
