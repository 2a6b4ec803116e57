"""Greedy sampling by llama.cpp, through the C interface that llama-cpp-python brings."""

import ctypes
from pathlib import Path

import numpy as np

from autollm_jax.benchmarks.timing import BENCHMARKS, cores, library


class Sampler:
    """Continues the same prompts at each call; a call returns the new tokens [B, T].

    All rows are read in one batch, then one token of each row is. Keys and values are float32. The
    instructions of the build are `build`.
    """

    def __init__(self, file: Path, prompts: list[list[int]], new_tokens: int):
        api = self._api = library("llama_cpp", BENCHMARKS)
        self._silent = api.llama_log_callback(lambda *_: None)
        api.llama_log_set(self._silent, None)
        api.llama_backend_init()
        self.build = api.llama_print_system_info().decode().strip()
        self._model = api.llama_model_load_from_file(bytes(file), api.llama_model_default_params())
        self._prompts_BT, self._new_tokens = np.array(prompts, np.int32), new_tokens
        B, T = self._prompts_BT.shape
        settings = api.llama_context_default_params()
        settings.n_ctx = B * -(-(T + new_tokens) // 256) * 256  # a row's share is a multiple of 256
        settings.n_seq_max = B
        settings.n_batch = settings.n_ubatch = B * T
        settings.n_threads = settings.n_threads_batch = cores()
        settings.type_k = settings.type_v = 0  # GGML_TYPE_F32, as ours on a CPU
        self._context = api.llama_init_from_model(self._model, settings)
        if not self._model or not self._context:
            raise RuntimeError(f"llama.cpp does not load {file}")
        self._vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))
        self._batch = api.llama_batch_init(B * T, 0, 1)

    def __call__(self) -> np.ndarray:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        B, T = self._prompts_BT.shape
        said = [self._next(self._prompts_BT, 0)]
        for step in range(self._new_tokens - 1):
            said.append(self._next(said[-1][:, None], T + step))
        return np.stack(said, axis=1)

    def _next(self, tokens_BT: np.ndarray, start: int) -> np.ndarray:
        """Read tokens of every row from this position on; return the likeliest next ones, [B]."""
        (B, T), batch = tokens_BT.shape, self._batch
        batch.n_tokens = B * T
        np.ctypeslib.as_array(batch.token, (B * T,))[:] = tokens_BT.ravel()
        np.ctypeslib.as_array(batch.pos, (B * T,))[:] = np.tile(np.arange(start, start + T), B)
        np.ctypeslib.as_array(batch.n_seq_id, (B * T,))[:] = 1
        np.ctypeslib.as_array(batch.logits, (B * T,))[:] = np.tile(np.arange(T) == T - 1, B)
        for place in range(B * T):
            batch.seq_id[place][0] = place // T
        if code := self._api.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {code}")
        logits = ctypes.cast(
            self._api.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float)
        )
        return np.ctypeslib.as_array(logits, (B, self._vocabulary)).argmax(-1)
