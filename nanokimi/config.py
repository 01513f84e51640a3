"""Sizes of everything: one dial (`--preset`), the rest derived or overridable.

Structure is Kimi K2.5's (MoonViT-3D, MLA, DeepSeek-V3 MoE); only numbers are scaled down. `k2.5` holds the released numbers.
"""
from dataclasses import dataclass, field


@dataclass(frozen=True)
class VisionConfig:
    """MoonViT-3D (K2.5 config.json: vision_config)."""
    patch: int = 8                  # pixels a side; K2.5: 14
    dim: int = 128
    layers: int = 3
    heads: int = 4
    mlp: int = 256
    pos_grid: int = 12              # learned position table (pos_grid, pos_grid, dim), resampled bicubically; K2.5: 64
    frames: int = 4                 # frames in a chunk
    rope_theta: float = 10000.0
    eps: float = 1e-5
    max_image_patches: int = 144    # per picture (96 x 96 px at patch 8); K2.5: 16384
    max_frame_patches: int = 144    # per video frame; K2.5: 4096
    max_side_patches: int = 64      # per side; K2.5: 512

    @property
    def head_dim(self): return self.dim // self.heads


@dataclass(frozen=True)
class LanguageConfig:
    """K2's language model (DeepSeek-V3 structure)."""
    vocab: int = 2048
    dim: int = 128
    layers: int = 3
    heads: int = 4
    q_lora: int = 96
    kv_lora: int = 64
    nope: int = 32                  # head dimensions without position
    rope: int = 16                  # head dimensions with RoPE (one shared key head)
    v_dim: int = 32
    dense_layers: int = 1           # the first layer is a plain SwiGLU, K2 Table 2
    dense_ffn: int = 384
    experts: int = 8
    top_k: int = 2
    shared: int = 1                 # shared experts, always on
    expert_ffn: int = 128
    routed_scaling: float = 1.41    # ML's gate scale (mean of 1 / sqrt(sum p^2)) for 8 experts, top 2; K2.5: 2.827
    rope_theta: float = 50000.0
    eps: float = 1e-6
    context: int = 1024
    aux_alpha: float = 1e-4         # DS3's weight of the sequence-wise loss
    init_std: float = 0.02
    rope_factor: float = 1.0        # YaRN: how many times longer than rope_original the context is; 1 = plain RoPE; K2.5: 64
    rope_original: int = 0          # YaRN: tokens of context before the extension; K2.5: 4096

    @property
    def qk_dim(self): return self.nope + self.rope


@dataclass(frozen=True)
class ModelConfig:
    """Encoder and language model together."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    language: LanguageConfig = field(default_factory=LanguageConfig)


LONGER = 4                          # how many times --stage longctx extends the rows that pre-training read; K2: 32, K2.5: 64


@dataclass(frozen=True)
class Preset:
    """A model and how to train it. All training values are ours: the papers do not disclose theirs at any size like this."""
    model: ModelConfig
    minutes: float                  # wall clock of `python train.py`, tokenizer to report card
    documents: int                  # a pre-training step
    length: int = 256               # tokens in a packed row
    lr: float = 3e-3                # Muon and AdamW share it (Moonlight)
    weight_decay: float = 0.1       # K2 2.5
    warmup: int = 40                # steps
    decay_share: float = 0.35       # of the steps, K2 2.5: 5.5T of 15.5T tokens
    qk_clip: float = 30.0           # tau; K2: 100, its small ablation: 30
    balance_rate: float = 1e-3      # of the selection bias, DS3; 0 while the rate decays
    clip_grad: float = 1.0
    train_share: float = 0.97       # of the minutes for both stages; the rest is the tokenizer and the evaluation
    sft_steps: int = 500
    sft_documents: int = 40
    sft_length: int = 384           # a chat with a tool call is longer than a document
    sft_lr: float = 8e-4
    exam: int = 50                  # problems a row in train.py's own short evaluation
    val_times: int = 8              # how often a stage asks val problems, its end included ...
    val_problems: int = 40          # ... a row
    corpus: int = 6000              # documents that the tokenizer is trained on
    longctx_steps: int = 300        # --stage longctx; its rows are LONGER times as long as pre-training's
    longctx_documents: int = 48     # fewer than in pre-training where those would not fit a card
    longctx_lr: float = 1e-3


PRESETS = {
    "micro": Preset(ModelConfig(VisionConfig(dim=32, layers=2, heads=2, mlp=64),
                                LanguageConfig(vocab=768, dim=32, layers=2, heads=2, q_lora=24, kv_lora=16, nope=8, rope=8, v_dim=8,
                                               dense_ffn=64, experts=4, expert_ffn=32)),
                    minutes=1, train_share=0.6, documents=24, warmup=5, sft_steps=10, sft_documents=8, exam=8, val_problems=8,
                    corpus=600, longctx_steps=6, longctx_documents=24),
    "nano": Preset(ModelConfig(VisionConfig(), LanguageConfig(vocab=1536)), minutes=20, documents=48, length=192),     # small logits
    # Ours, chosen with python -m nanokimi.memory and tried for 200 steps on a CPU only. K2's proportions: kv_lora = 4 nope, q_lora = 6 nope
    # (K2: 12), expert_ffn about dim / 3 (K2: 3.5), no fewer than 32 experts; MoonViT's: mlp = 3.75 dim.
    "laptop": Preset(ModelConfig(VisionConfig(dim=256, layers=6, heads=4, mlp=960),
                                 LanguageConfig(vocab=2048, dim=384, layers=8, heads=12, q_lora=192, kv_lora=128, dense_ffn=1024,
                                                experts=32, top_k=4, expert_ffn=128, routed_scaling=2.0)),
                     minutes=240, documents=320, length=256, lr=1.5e-3, warmup=200, sft_lr=5e-4, longctx_documents=64),
    "consumer": Preset(ModelConfig(VisionConfig(dim=384, layers=12, heads=6, mlp=1440),
                                   LanguageConfig(vocab=2048, dim=512, layers=12, heads=8, q_lora=384, kv_lora=256, nope=64, rope=32,
                                                  v_dim=64, dense_ffn=1408, experts=64, top_k=4, expert_ffn=160, routed_scaling=2.0)),
                       minutes=2880, documents=576, length=256, lr=1e-3, warmup=500, sft_lr=3e-4, longctx_documents=128),
    "k2.5": Preset(ModelConfig(                                  # config.json as released; on the meta device only
        VisionConfig(patch=14, dim=1152, layers=27, heads=16, mlp=4304, pos_grid=64, max_image_patches=16384, max_frame_patches=4096,
                     max_side_patches=512),
        LanguageConfig(vocab=163840, dim=7168, layers=61, heads=64, q_lora=1536, kv_lora=512, nope=128, rope=64, v_dim=128,
                       dense_ffn=18432, experts=384, top_k=8, expert_ffn=2048, routed_scaling=2.827, eps=1e-5, context=262144,
                       rope_factor=64.0, rope_original=4096, aux_alpha=1e-3)), minutes=0, documents=2, length=4096, lr=2e-4, warmup=500, qk_clip=100.0),       # K2 2.5
}
