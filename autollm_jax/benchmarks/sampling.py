"""Sampling against other libraries: `generate` of `transformers`, and llama.cpp.

Letters: B rows, T tokens.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from autollm_jax.benchmarks import smollm2
from autollm_jax.benchmarks.llama_cpp_sampler import Sampler
from autollm_jax.benchmarks.timing import Options, Seconds, cores, in_turn, library, measured
from autollm_jax.errors import UserError
from autollm_jax.models.decoding import for_decoding
from autollm_jax.models.transformer import TransformerConfig
from autollm_jax.rl import sampler
from autollm_jax.rl.sampler import SamplerConfig

REFERENCE = "transformers, float32"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Rows, tokens of each prompt, and new tokens of each row."""

    rows: int
    prompt: int
    answer: int = 64


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was measured; names as printed, `ours` among them.

    said: each sampler's new tokens, [B, T].
    times: seconds of each sampler's calls, in turn.
    build: the instructions that llama.cpp uses; "" where it is not compared.
    """

    said: dict[str, np.ndarray]
    times: dict[str, list[Seconds]]
    build: str


def sampling(options: Options) -> dict:
    """Time 64 new tokens for each of --rows prompts, greedily; no end of turn stops any side.

    All have the same weights, SmolLM2-135M's shape with random values, the same prompts, which they
    read in the measured time, and the same cores: ours laid out for decoding, in --dtype;
    `generate` in float32, the reference, and in --dtype; on a CPU llama.cpp in --dtype, keys and
    values in float32 as ours.
    """
    dtype, sizes = options.dtype or "float32", Sizes(options.rows, options.prompt)
    found = compare(smollm2.SHAPE, sizes, dtype, options.repeats)
    print(f"{sizes}; {dtype}")
    if found.build:
        print(f"llama.cpp: {found.build}")
    for name, said_BT in found.said.items():
        same = np.mean(said_BT == found.said[REFERENCE])
        print(f"{name}: {same:.1%} of the tokens are the reference's", end=", ")
        print(f"{len(np.unique(said_BT))} different ones")
    rates, new_tokens = {}, sizes.rows * sizes.answer
    for name, times in found.times.items():
        rates[name] = [new_tokens / time.wall for time in times]
        print(f"{name}:", ", ".join(f"{rate:.1f}" for rate in rates[name]), end=" tokens/s; ")
        print("CPU time", ", ".join(f"{time.cpu:.2f}" for time in times), "s")
    for name in list(found.times)[1:]:
        ours, theirs = (np.median([time.cpu for time in found.times[n]]) for n in ("ours", name))
        print(f"CPU time of {name} / ours: {theirs / ours:.2f}")
    return measured(rates.pop("ours"), "tokens/s", rates.pop(REFERENCE), **rates)


def compare(config: TransformerConfig, sizes: Sizes, dtype: str, repeats: int) -> Comparison:
    """Let the samplers continue the same prompts, in turn.

    Raises:
      UserError: `transformers` is not installed, or a sampler says another number of tokens.
    """
    params = smollm2.random_params(config)
    prompts = smollm2.random_prompts(config, sizes.rows, sizes.prompt)
    on_tpu = jax.default_backend() == "tpu"
    model = dataclasses.replace(config, dtype=dtype, cache_dtype="float32", slots_first=on_tpu)
    calls = {"ours": _own_sampler(model, params, prompts, sizes.answer)}
    build = ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        smollm2.write_safetensors(config, params, folder)
        for kind in dict.fromkeys(("float32", dtype)):
            theirs = _transformers_sampler(folder, kind, prompts, sizes.answer)
            calls[f"transformers, {kind}"] = theirs
        if jax.default_backend() == "cpu":
            try:
                smollm2.write_gguf(config, params, folder / "model.gguf", dtype)
                theirs = Sampler(folder / "model.gguf", prompts, sizes.answer)
                calls["llama.cpp"], build = theirs, theirs.build
            except UserError as error:
                print(f"without llama.cpp: {error}")
        said = {name: np.asarray(call())[:, -sizes.answer :] for name, call in calls.items()}
        if {tokens.shape for tokens in said.values()} != {(sizes.rows, sizes.answer)}:
            shapes = {name: tokens.shape for name, tokens in said.items()}
            raise UserError(f"sampling: stopped early, at {shapes}")
        return Comparison(said, in_turn("sampling", calls, repeats, compiled=True), build)


def _own_sampler(
    model: TransformerConfig, params, prompts: list[list[int]], new_tokens: int
) -> Callable:
    """Return a function that continues the prompts with this package's sampler."""
    params = for_decoding(model, params)
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


def _transformers_sampler(
    folder: Path, dtype: str, prompts: list[list[int]], new_tokens: int
) -> Callable:
    """Return a function that continues the prompts with `generate`, weights in this type."""
    torch, transformers = library("torch"), library("transformers")
    torch.set_num_threads(cores())
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype)
    )
    greedy = transformers.GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )

    def sample():
        with torch.inference_mode():
            prompts_BT = torch.tensor(prompts)
            mask_BT = torch.ones_like(prompts_BT)
            return reference.generate(prompts_BT, attention_mask=mask_BT, generation_config=greedy)

    return sample
