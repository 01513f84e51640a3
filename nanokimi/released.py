"""The released layout: K2.5's names for our tensors and settings, and back, bit for bit.

One table names every tensor on both sides; a tensor that the table does not know, or misses, is an error. It is the layout of the released
checkpoint (vision_tower.encoder.blocks.0.wqkv ...), which transformers, vLLM and SGLang all read. Its encoder is ours: q, k and v in one
matrix, RoPE on interleaved pairs. Only the experts differ: one tensor each there, one stack of all of them here.
"""
import re

import torch

from .config import LanguageConfig, ModelConfig, VisionConfig
from .language import BETA_FAST, BETA_SLOW

Row = tuple[str, tuple[str, ...], str]          # (our name, their names, how the tensors correspond)


def vision_table(cfg: VisionConfig) -> list[Row]:
    """Encoder and projector."""
    rows = [("vision.embed.proj.weight", ("vision_tower.patch_embed.proj.weight",), "conv"),
            ("vision.embed.proj.bias", ("vision_tower.patch_embed.proj.bias",), "same"),
            ("vision.embed.pos", ("vision_tower.patch_embed.pos_emb.weight",), "same")]
    names = {"norm0": "norm0", "norm1": "norm1", "attn.wqkv": "wqkv", "attn.wo": "wo", "fc0": "mlp.fc0", "fc1": "mlp.fc1"}
    for end in (".weight", ".bias"):
        for i in range(cfg.layers):
            rows += [(f"vision.layers.{i}.{ours}{end}", (f"vision_tower.encoder.blocks.{i}.{other}{end}",), "same")
                     for ours, other in names.items()]
        rows.append((f"vision.norm{end}", (f"vision_tower.encoder.final_layernorm{end}",), "same"))
        for ours, other in {"norm": "pre_norm", "fc0": "proj.0", "fc1": "proj.2"}.items():
            rows.append((f"projector.{ours}{end}", (f"mm_projector.{other}{end}",), "same"))
    return rows


def language_table(cfg: LanguageConfig, prefix: str = "language_model.") -> list[Row]:
    """The language model; without prefix, the layout of a DeepSeek-V3 that stands alone."""
    rows = [("language.embed.weight", (f"{prefix}model.embed_tokens.weight",), "same"),
            ("language.norm.weight", (f"{prefix}model.norm.weight",), "same"),
            ("language.head.weight", (f"{prefix}lm_head.weight",), "same")]
    attention = {"norm0": "input_layernorm", "norm1": "post_attention_layernorm", "attn.q_a": "self_attn.q_a_proj",
                 "attn.q_norm": "self_attn.q_a_layernorm", "attn.q_b": "self_attn.q_b_proj", "attn.kv_a": "self_attn.kv_a_proj_with_mqa",
                 "attn.kv_norm": "self_attn.kv_a_layernorm", "attn.kv_b": "self_attn.kv_b_proj", "attn.o": "self_attn.o_proj"}
    for i in range(cfg.layers):
        a, b = f"language.layers.{i}.", f"{prefix}model.layers.{i}."
        rows += [(f"{a}{ours}.weight", (f"{b}{other}.weight",), "same") for ours, other in attention.items()]
        dense = i < cfg.dense_layers
        ours, other = ("mlp.", "mlp.") if dense else ("moe.shared.", "mlp.shared_experts.")
        rows.append((f"{a}{ours}gate_up.weight", tuple(f"{b}{other}{x}_proj.weight" for x in ("gate", "up")), "rows"))
        rows.append((f"{a}{ours}down.weight", (f"{b}{other}down_proj.weight",), "same"))
        rows += [] if dense else expert_table(a + "moe.", b + "mlp.", cfg.experts)
    return rows


def expert_table(a: str, b: str, experts: int) -> list[Row]:
    """Router and experts of a layer; an expert's gate and up projection stand side by side in our stack."""
    each = lambda *names: tuple(f"{b}experts.{j}.{x}_proj.weight" for j in range(experts) for x in names)
    return [(a + "router.weight", (b + "gate.weight",), "same"),
            (a + "router.e_score_correction_bias", (b + "gate.e_score_correction_bias",), "same"),
            (a + "gate_up", each("gate", "up"), "gated experts"), (a + "down", each("down"), "experts")]


def _export(x: torch.Tensor, how: str, patch: int) -> list[torch.Tensor]:
    if how == "conv":
        return [x.unflatten(1, (3, patch, patch))]
    if how == "gated experts":                                          # (E, 2 f, d) -> gate, up, gate, up, ... of (f, d) each
        return [half for expert in x for half in expert.chunk(2)]
    return list(x) if how == "experts" else list(x.chunk(2)) if how == "rows" else [x]


def _import(parts: list[torch.Tensor], how: str) -> torch.Tensor:
    if how == "conv":
        return parts[0].flatten(1)
    if how == "gated experts":
        return torch.stack([torch.cat(pair) for pair in zip(parts[::2], parts[1::2])])
    return torch.stack(parts) if how == "experts" else torch.cat(parts) if how == "rows" else parts[0]


def _to(table: list[Row], state: dict, patch: int) -> dict:
    _check(state, [ours for ours, _, _ in table])
    out = {}
    for ours, theirs, how in table:
        out |= zip(theirs, (part.clone().contiguous() for part in _export(state[ours], how, patch)), strict=True)
    return out


def _from(table: list[Row], state: dict) -> dict:
    _check(state, [name for _, theirs, _ in table for name in theirs])
    return {ours: _import([state[name] for name in theirs], how).clone().contiguous() for ours, theirs, how in table}


def _check(state: dict, names: list[str]) -> None:
    missing, unknown = sorted(set(names) - set(state)), sorted(set(state) - set(names))
    if missing or unknown:
        raise ValueError(f"the weights do not fit this configuration: missing {missing[:5]}, unknown {unknown[:5]}")


def to_kimi_k25(state: dict, cfg: ModelConfig) -> dict:
    """NanoKimi.state_dict() -> tensors by K2.5's released names. ValueError if names do not fit cfg."""
    return _to(vision_table(cfg.vision) + language_table(cfg.language), state, cfg.vision.patch)


def from_kimi_k25(state: dict, cfg: ModelConfig) -> dict:
    """The inverse of `to_kimi_k25`, bit for bit."""
    return _from(vision_table(cfg.vision) + language_table(cfg.language), plain_names(state))


def to_deepseek_v3(state: dict, cfg: ModelConfig) -> dict:
    """The language part of NanoKimi.state_dict() -> tensors by DeepSeek-V3's released names."""
    language = {name: x for name, x in state.items() if name.startswith("language.")}
    return _to(language_table(cfg.language, prefix=""), language, cfg.vision.patch)


def from_deepseek_v3(state: dict, cfg: ModelConfig) -> dict:
    """The inverse of `to_deepseek_v3`: tensors named language.*."""
    return _from(language_table(cfg.language, prefix=""), state)


SAVED_BY_TRANSFORMERS = {                       # transformers 5.23 undoes its own renaming by patterns that match too much, or too little
    r"^language_model\.model\.blocks\.": "language_model.model.layers.",
    r"^vision_tower\.encoder\.patch_embed\.": "vision_tower.patch_embed.",
    r"^model\.mm_projector\.": "mm_projector.",
}


def plain_names(state: dict) -> dict:
    """The same tensors by their released names, also where transformers' save_pretrained wrote them."""
    for pattern, replacement in SAVED_BY_TRANSFORMERS.items():
        state = {re.sub(pattern, replacement, name): x for name, x in state.items()}
    return state


# ---- settings ------------------------------------------------------------------------------------------------------------------------

TEXT = {"vocab_size": "vocab", "hidden_size": "dim", "num_hidden_layers": "layers", "num_attention_heads": "heads",
        "q_lora_rank": "q_lora", "kv_lora_rank": "kv_lora", "qk_nope_head_dim": "nope", "qk_rope_head_dim": "rope", "v_head_dim": "v_dim",
        "first_k_dense_replace": "dense_layers", "intermediate_size": "dense_ffn", "n_routed_experts": "experts",
        "num_experts_per_tok": "top_k", "n_shared_experts": "shared", "moe_intermediate_size": "expert_ffn",
        "routed_scaling_factor": "routed_scaling", "rms_norm_eps": "eps", "max_position_embeddings": "context",
        "initializer_range": "init_std"}
VISION = {"patch_size": "patch", "hidden_size": "dim", "num_hidden_layers": "layers", "num_attention_heads": "heads",
          "intermediate_size": "mlp", "pos_emb_height": "pos_grid", "pos_emb_time": "frames"}


def deepseek_v3_config(cfg: LanguageConfig) -> dict:
    """Arguments of transformers' DeepseekV3Config."""
    return {"model_type": "deepseek_v3"} | {theirs: getattr(cfg, ours) for theirs, ours in TEXT.items()} | {
        "num_key_value_heads": cfg.heads, "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "scoring_func": "sigmoid",
        "topk_method": "noaux_tc", "hidden_act": "silu", "attention_bias": False, "rope_interleave": True,
        "rope_parameters": rope_parameters(cfg), "num_nextn_predict_layers": 0, "tie_word_embeddings": False}


def rope_parameters(cfg: LanguageConfig) -> dict:
    """Plain RoPE or YaRN, as transformers spells it (K2.5's config.json: `rope_scaling` with `type`, and `rope_theta` beside it)."""
    if cfg.rope_factor == 1:
        return {"rope_type": "default", "rope_theta": cfg.rope_theta}
    return {"rope_type": "yarn", "rope_theta": cfg.rope_theta, "factor": cfg.rope_factor, "beta_fast": BETA_FAST, "beta_slow": BETA_SLOW,
            "original_max_position_embeddings": cfg.rope_original, "mscale": 1.0, "mscale_all_dim": 1.0}


def kimi_k25_config(cfg: ModelConfig, media_pad: int) -> dict:
    """Arguments of transformers' Kimi_K25Config. Pictures and clips share one placeholder, as in the released model;
    transformers' own id for clips is the first beyond the vocabulary, there as here."""
    v = cfg.vision
    assert v.eps == 1e-5 and v.rope_theta == 10000.0, "transformers fixes the vision norms at eps 1e-5 and the vision rope at theta 10000"
    vision = {theirs: getattr(v, ours) for theirs, ours in VISION.items()} | {"pos_emb_width": v.pos_grid, "merge_kernel_size": [2, 2],
                                                                              "hidden_act": "gelu_pytorch_tanh"}
    return {"text_config": deepseek_v3_config(cfg.language), "vision_config": vision, "projection_hidden_size": v.dim,
            "projection_layer_norm_eps": v.eps, "image_token_id": media_pad, "video_token_id": cfg.language.vocab,
            "tie_word_embeddings": False}                               # transformers' default is True, the released model is untied


def from_config(config: dict, images: dict, frames: dict) -> ModelConfig:
    """config.json and the two preprocessor configurations of a folder -> our sizes. ValueError where it asks for what we do not have."""
    try:
        text = {ours: config["text_config"][theirs] for theirs, ours in TEXT.items()}
        vision = {ours: config["vision_config"][theirs] for theirs, ours in VISION.items()}
        rope = config["text_config"]["rope_parameters"]
        text["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type") == "yarn":
            text |= {"rope_factor": rope["factor"], "rope_original": rope["original_max_position_embeddings"]}
        vision |= {"max_image_patches": images["max_patches"], "max_frame_patches": frames["max_patches"],
                   "max_side_patches": images["size"]["max_height"]}
        media_pad = config["image_token_id"]
    except KeyError as error:
        raise ValueError(f"the configuration has no {error.args[0]}") from error
    cfg = ModelConfig(VisionConfig(**vision), LanguageConfig(**text))
    differs = differences(kimi_k25_config(cfg, media_pad), config)
    if cfg.language.rope_factor != 1:                                    # what YaRN's parameters leave unsaid is not what ours are
        differs += [f"rope_parameters: {name} stands on one side only" for name in sorted(set(rope) ^ set(rope_parameters(cfg.language)))]
    if differs:
        raise ValueError(f"this model is built differently from ours: {'; '.join(differs[:5])}")
    return cfg


def differences(ours: dict, theirs: dict, path: str = "") -> list[str]:
    """What `theirs` says otherwise than `ours`; what it does not say at all is the default."""
    out = []
    for name, value in ours.items():
        if isinstance(value, dict) and isinstance(theirs.get(name), dict):
            out += differences(value, theirs[name], f"{path}{name}.")
        elif name in theirs and theirs[name] != value:
            out.append(f"{path}{name} is {theirs[name]}, not {value}")
    return out
