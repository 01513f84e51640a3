"""To and from transformers' `kimi_k25` and `deepseek_v3`: the same weights give the same logits there.

One table names every tensor on both sides; a tensor that the table does not know, or misses, is an error. transformers is not imported.
Defects of transformers 5.23's port that a user will meet: clips with t > 1 do not pass its get_image_features (wrong split sizes), nor do
clips of different t in one batch pass its vision tower; the tower alone is right for pictures and for clips of one length.
"""
import torch

from nanokimi.config import LanguageConfig, ModelConfig, VisionConfig

Row = tuple[str, tuple[str, ...], str]          # (our name, their names, how the tensors correspond)


def _vision_table(cfg: VisionConfig) -> list[Row]:
    theirs = "model.vision_tower."
    rows = [("vision.embed.proj.weight", (theirs + "patch_embed.proj.weight",), "conv"),
            ("vision.embed.proj.bias", (theirs + "patch_embed.proj.bias",), "same"),
            ("vision.embed.pos", (theirs + "patch_embed.pos_emb.position_embeddings",), "same")]
    names = {"norm0": "norm1", "norm1": "norm2", "attn.wo": "attn.proj", "fc0": "mlp.fc1", "fc1": "mlp.fc2"}
    for end in (".weight", ".bias"):
        for i in range(cfg.layers):
            a, b = f"vision.layers.{i}.", f"{theirs}layers.{i}."
            rows += [(a + ours + end, (b + other + end,), "same") for ours, other in names.items()]
            rows.append((a + "attn.wqkv" + end, tuple(f"{b}attn.{x}_proj{end}" for x in "qkv"), "qkv"))
        rows.append(("vision.norm" + end, (theirs + "final_layernorm" + end,), "same"))
        for ours, other in {"norm": "pre_norm", "fc0": "in_proj", "fc1": "out_proj"}.items():
            rows.append((f"projector.{ours}{end}", (f"model.mm_projector.{other}{end}",), "same"))
    return rows


def _language_table(cfg: LanguageConfig, theirs: str) -> list[Row]:
    rows = [("language.embed.weight", (theirs + "embed_tokens.weight",), "same"),
            ("language.norm.weight", (theirs + "norm.weight",), "same"),
            ("language.head.weight", ("lm_head.weight",), "same")]
    attention = {"norm0": "input_layernorm", "norm1": "post_attention_layernorm", "attn.q_a": "self_attn.q_a_proj",
                 "attn.q_norm": "self_attn.q_a_layernorm", "attn.q_b": "self_attn.q_b_proj", "attn.kv_a": "self_attn.kv_a_proj_with_mqa",
                 "attn.kv_norm": "self_attn.kv_a_layernorm", "attn.kv_b": "self_attn.kv_b_proj", "attn.o": "self_attn.o_proj"}
    experts = {"moe.router.weight": "mlp.gate.weight", "moe.router.e_score_correction_bias": "mlp.gate.e_score_correction_bias",
               "moe.gate_up": "mlp.experts.gate_up_proj", "moe.down": "mlp.experts.down_proj"}
    for i in range(cfg.layers):
        a, b = f"language.layers.{i}.", f"{theirs}layers.{i}."
        rows += [(f"{a}{ours}.weight", (f"{b}{other}.weight",), "same") for ours, other in attention.items()]
        dense = i < cfg.dense_layers
        ours, other = ("mlp.", "mlp.") if dense else ("moe.shared.", "mlp.shared_experts.")
        rows.append((a + ours + "gate_up.weight", (b + other + "gate_proj.weight", b + other + "up_proj.weight"), "rows"))
        rows.append((a + ours + "down.weight", (b + other + "down_proj.weight",), "same"))
        rows += [] if dense else [(a + x, (b + y,), "same") for x, y in experts.items()]
    return rows


def _halves(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from interleaved pairs (ours, Moonshot's) to two halves (theirs: rotate_half)."""
    return x.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _pairs(x: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of `_halves`."""
    return x.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _export(x: torch.Tensor, how: str, vision: VisionConfig) -> tuple[torch.Tensor, ...]:
    if how == "conv":
        return (x.unflatten(1, (3, vision.patch, vision.patch)),)
    if how == "qkv":
        q, k, v = x.chunk(3)
        return _halves(q, vision.heads), _halves(k, vision.heads), v
    return x.chunk(2) if how == "rows" else (x,)


def _import(parts: list[torch.Tensor], how: str, vision: VisionConfig) -> torch.Tensor:
    if how == "conv":
        return parts[0].flatten(1)
    if how == "qkv":
        q, k, v = parts
        return torch.cat([_pairs(q, vision.heads), _pairs(k, vision.heads), v])
    return torch.cat(parts) if how == "rows" else parts[0]


def _to(table: list[Row], state: dict, vision: VisionConfig) -> dict:
    _check(state, [ours for ours, _, _ in table])
    out = {}
    for ours, theirs, how in table:
        out |= zip(theirs, (part.clone().contiguous() for part in _export(state[ours], how, vision)))
    return out


def _from(table: list[Row], state: dict, vision: VisionConfig) -> dict:
    _check(state, [name for _, theirs, _ in table for name in theirs])
    return {ours: _import([state[name] for name in theirs], how, vision).clone().contiguous() for ours, theirs, how in table}


def _check(state: dict, names: list[str]) -> None:
    missing, unknown = sorted(set(names) - set(state)), sorted(set(state) - set(names))
    if missing or unknown:
        raise ValueError(f"the weights do not fit this configuration: missing {missing[:5]}, unknown {unknown[:5]}")


def to_kimi_k25(state: dict, cfg: ModelConfig) -> dict:
    """NanoKimi.state_dict() -> the state dict of transformers' Kimi_K25ForConditionalGeneration. ValueError if names do not fit cfg."""
    return _to(_vision_table(cfg.vision) + _language_table(cfg.language, "model.language_model."), state, cfg.vision)


def from_kimi_k25(state: dict, cfg: ModelConfig) -> dict:
    """The inverse of `to_kimi_k25`, bit for bit."""
    return _from(_vision_table(cfg.vision) + _language_table(cfg.language, "model.language_model."), state, cfg.vision)


def to_deepseek_v3(state: dict, cfg: ModelConfig) -> dict:
    """The language part of NanoKimi.state_dict() -> the state dict of transformers' DeepseekV3ForCausalLM."""
    language = {name: x for name, x in state.items() if name.startswith("language.")}
    return _to(_language_table(cfg.language, "model."), language, cfg.vision)


def from_deepseek_v3(state: dict, cfg: ModelConfig) -> dict:
    """The inverse of `to_deepseek_v3`: tensors named language.*."""
    return _from(_language_table(cfg.language, "model."), state, cfg.vision)


def deepseek_v3_config(cfg: LanguageConfig) -> dict:
    """Arguments of transformers' DeepseekV3Config. YaRN is left out, as in our model."""
    return {"model_type": "deepseek_v3", "vocab_size": cfg.vocab, "hidden_size": cfg.dim, "num_hidden_layers": cfg.layers,
            "num_attention_heads": cfg.heads, "num_key_value_heads": cfg.heads, "q_lora_rank": cfg.q_lora, "kv_lora_rank": cfg.kv_lora,
            "qk_nope_head_dim": cfg.nope, "qk_rope_head_dim": cfg.rope, "v_head_dim": cfg.v_dim, "first_k_dense_replace": cfg.dense_layers,
            "intermediate_size": cfg.dense_ffn, "n_routed_experts": cfg.experts, "num_experts_per_tok": cfg.top_k,
            "n_shared_experts": cfg.shared, "moe_intermediate_size": cfg.expert_ffn, "routed_scaling_factor": cfg.routed_scaling,
            "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "rms_norm_eps": cfg.eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
            "rope_interleave": True, "max_position_embeddings": cfg.context,
            "num_nextn_predict_layers": 0, "tie_word_embeddings": False}


def kimi_k25_config(cfg: ModelConfig, media_pad: int) -> dict:
    """Arguments of transformers' Kimi_K25Config. Pictures and clips share one placeholder, as in the released model;
    transformers' own id for clips is one that never occurs."""
    v = cfg.vision
    assert v.eps == 1e-5 and v.rope_theta == 10000.0, "transformers fixes the vision norms at eps 1e-5 and the vision rope at theta 10000"
    vision = {"patch_size": v.patch, "hidden_size": v.dim, "num_hidden_layers": v.layers, "num_attention_heads": v.heads,
              "intermediate_size": v.mlp, "pos_emb_height": v.pos_grid, "pos_emb_width": v.pos_grid, "pos_emb_time": v.frames}
    return {"text_config": deepseek_v3_config(cfg.language), "vision_config": vision, "projection_hidden_size": v.dim,
            "projection_layer_norm_eps": v.eps, "image_token_id": media_pad, "video_token_id": cfg.language.vocab,
            "tie_word_embeddings": False}                               # transformers' default is True, the released model is untied
