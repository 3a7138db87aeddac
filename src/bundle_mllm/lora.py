"""Which modules LoRA adapts by default.

Knows nothing about how they are adapted.
"""

LORA_TARGET_MODULES = ["q_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv"]
"""Queries and values (official code), by the names that backbones give them."""
