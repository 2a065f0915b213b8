"""The model: a small causal language model of transformers, built from a configuration."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["MODELS", "build_model"]

MODELS = ("llama", "neox", "mixtral")


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the lab trains models of the transformers package: pip install 'halfulp[lab]'"
        ) from error
    return transformers


def build_model(
    name: str, *, vocab: int, hidden: int, layers: int, heads: int, context: int, seed: int
) -> torch.nn.Module:
    """Build a model with random weights that depend on the seed only. Input and output embeddings are shared.

    ``"llama"`` has a SwiGLU of twice the width, rotary positions and RMS norms. ``"neox"`` is GPT-NeoX, with a GELU of
    four times the width. ``"mixtral"`` is like llama, with four experts, two of which are used per token.
    """
    transformers = _transformers()
    common = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
        "use_cache": False,
        "attn_implementation": "sdpa",
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    torch.manual_seed(seed)
    model: torch.nn.Module
    if name == "llama":
        config = transformers.LlamaConfig(**common, intermediate_size=2 * hidden, num_key_value_heads=heads)
        model = transformers.LlamaForCausalLM(config)
    elif name == "neox":
        config = transformers.GPTNeoXConfig(**common, intermediate_size=4 * hidden)
        model = transformers.GPTNeoXForCausalLM(config)
    elif name == "mixtral":
        config = transformers.MixtralConfig(
            **common, intermediate_size=hidden, num_key_value_heads=heads, num_local_experts=4, num_experts_per_tok=2
        )
        model = transformers.MixtralForCausalLM(config)
    else:
        raise ValueError(f"model is one of {', '.join(MODELS)}; got {name!r}")
    return model.train()
