"""Tiny configurations of hybrid models: layers of linear attention, Mamba or convolutions beside attention layers."""

from __future__ import annotations

from typing import Any

import transformers

from namm_transfer.cache.hybrid import STATES_SERVED

SMALL = {
    "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LINEAR = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
CONV = ["conv", "full_attention", "conv", "conv"]
DELTA = {
    "layer_types": LINEAR, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_expand": 2,
    "mamba_chunk_size": 32,
}  # fmt: skip
_MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-next": ("Qwen3NextConfig", {**DELTA, **EXPERTS, "head_dim": 16, "shared_expert_intermediate_size": 32}),
    "qwen3.5": ("Qwen3_5TextConfig", {**DELTA, "head_dim": 16}),
    "qwen3.5-moe": ("Qwen3_5MoeTextConfig", {
        **DELTA, **EXPERTS, "head_dim": 16, "shared_expert_intermediate_size": 32,
    }),
    "granite-moe-hybrid": ("GraniteMoeHybridConfig", {
        **MAMBA, "layer_types": LINEAR, "num_local_experts": 2, "num_experts_per_tok": 1,
        "shared_intermediate_size": 32,
    }),
    "bamba": ("BambaConfig", {**MAMBA, "attn_layer_indices": [1, 3]}),
    "falcon-h1": ("FalconH1Config", {**MAMBA, "head_dim": 16, "mamba_d_ssm": 128, "num_hidden_layers": 2}),
    "jamba": ("JambaConfig", {
        "attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 8, "mamba_dt_rank": 8,
    }),
    "nemotron-h": ("NemotronHConfig", {
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention"], "mamba_num_heads": 8,
        "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": 16, "head_dim": 16, "chunk_size": 32,
    }),
    "olmo-hybrid": ("OlmoHybridConfig", DELTA),
    "lfm2": ("Lfm2Config", {"layer_types": CONV, "conv_L_cache": 3}),
    "lfm2-moe": ("Lfm2MoeConfig", {**EXPERTS, "layer_types": CONV, "conv_L_cache": 3, "num_dense_layers": 1}),
}  # fmt: skip
HYBRID = {
    name: getattr(transformers, kind)(**{**SMALL, "initializer_range": 0.15, **own})
    for name, (kind, own) in (_MADE if STATES_SERVED else {}).items()
}
"""Empty with a transformers whose hybrid models cannot be served."""
