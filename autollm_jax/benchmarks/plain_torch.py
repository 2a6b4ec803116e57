"""A train step as a short PyTorch script writes it, of the Llama architecture in `transformers`."""

import numpy as np

from autollm_jax.benchmarks.timing import cores, library
from autollm_jax.models.transformer import TransformerConfig


class Step:
    """Steps on the same tokens; a call makes one and returns its loss.

    Parameters are f32; with bfloat16 products are those of `torch.autocast`.
    """

    def __init__(self, shape: TransformerConfig, dtype: str, tokens_BT, rate: float, clip: float):
        torch = self._torch = library("torch")
        transformers = library("transformers")
        torch.set_num_threads(cores())
        torch.manual_seed(0)
        self._model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=shape.vocab_size,
                hidden_size=shape.width,
                intermediate_size=shape.mlp_width,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.kv_heads,
                head_dim=shape.head_dim,
                tie_word_embeddings=shape.tied_embeddings,
                max_position_embeddings=tokens_BT.shape[1],
                use_cache=False,
                attn_implementation="sdpa",
            )
        ).train()
        self.parameters = sum(p.numel() for p in self._model.parameters())
        self._autocast, self._clip = dtype == "bfloat16", clip
        self._tokens_BT = torch.tensor(np.asarray(tokens_BT), dtype=torch.long)
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), rate, (0.9, 0.95), weight_decay=0.1, fused=True
        )

    def __call__(self):
        torch = self._torch
        with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            logits_BTV = self._model(self._tokens_BT[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits_BTV.flatten(0, 1).float(), self._tokens_BT[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.item()
