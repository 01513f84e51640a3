"""K2's language model: Multi-head Latent Attention and the DeepSeek-V3 mixture of experts (K2 2.3, DS3 2.1).

Left out: multi-token prediction (K2 has none), expert groups (K2: n_group = 1).
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from nanokimi.config import LanguageConfig
from nanokimi.kernels import ALIGN, EXPERTS, Combine, Dispatch, Normalise, attend, attention_logits, experts_dense, swiglu

BETA_FAST, BETA_SLOW = 32, 1    # YaRN: turns over the original context from which a pair stays, and up to which it is stretched (K2.5)
MASKED = -30000.0               # finite: a row of padding sees nothing and must not become NaN; exp of it is 0 in every dtype


# ---------------------------------------------------------------------------------------------------------------- pieces

class RMSNorm(nn.Module):
    """x / rms(x) * gain, in the dtype of x."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return Normalise.apply(x, (self.weight * scale).to(x.dtype), self.eps)


def rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """RoPE on interleaved pairs (x0, x1), (x2, x3), ... read as complex numbers: x (..., d), rotation (..., d / 2) complex64."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


def rope_1d(positions: torch.Tensor, dim: int, theta: float, factor: float = 1.0, original: int = 0) -> torch.Tensor:
    """Positions (B, T) -> rotation (B, T, 1, dim / 2) complex64; with factor > 1, YaRN's for a context of factor * original tokens."""
    frequency = 1 / theta ** (torch.arange(0, dim, 2, device=positions.device).float() / dim)      # as transformers rounds it
    if factor > 1:
        frequency = yarn(frequency, theta, factor, original)
    angles = positions[..., None, None] * frequency
    return torch.polar(torch.ones_like(angles), angles)


def yarn(frequency: torch.Tensor, theta: float, factor: float, original: int) -> torch.Tensor:
    """RoPE frequencies (dim / 2,) for a longer context (YaRN, arXiv 2309.00071, 3.2): a pair that turns BETA_FAST times or more over the
    original context tells neighbours apart and stays; one that turns BETA_SLOW times or less never met its later angles and is slowed
    down by the factor; those between are mixed."""
    dim = 2 * len(frequency)
    pair = lambda turns: dim * math.log(original / (2 * math.pi * turns)) / (2 * math.log(theta))       # which one turns so often
    low, high = max(math.floor(pair(BETA_FAST)), 0), min(math.ceil(pair(BETA_SLOW)), dim - 1)
    slowed = ((torch.arange(dim // 2, device=frequency.device) - low) / max(high - low, 0.001)).clamp(0, 1)      # (dim / 2,) share
    return frequency / factor * slowed + frequency * (1 - slowed)


def mscale(factor: float) -> float:
    """YaRN's temperature: over a longer context the softmax must be sharper. Multiplies q and k, so the logits by its square. K2.5's
    mscale = mscale_all_dim = 1: all of q and k, not only their RoPE part, so that cos and sin stay as they are."""
    return 0.1 * math.log(factor) + 1.0


# ---------------------------------------------------------------------------------------------------------------- cache

class Cache:
    """The compressed latents of the tokens so far: per layer (B, capacity, kv_lora + rope) = [c_kv | k_rope], filled up to `length`.

    Left padding: give `segments` = 0 on padding when you prefill; the cache remembers those slots (`valid`) and no later token sees them.
    """

    def __init__(self, cfg: LanguageConfig, batch: int, capacity: int, device, dtype: torch.dtype = torch.float32):
        self.latents = [torch.zeros(batch, capacity, cfg.kv_lora + cfg.rope, device=device, dtype=dtype) for _ in range(cfg.layers)]
        self.valid = torch.zeros(batch, capacity, dtype=torch.bool, device=device)
        self.length = 0

    @property
    def capacity(self) -> int:
        return self.valid.shape[1]

    def extend(self, valid: torch.Tensor) -> None:
        """Makes room for (B, T) new tokens and notes which of them are real."""
        B, T = valid.shape
        assert B == len(self.valid), f"the cache holds {len(self.valid)} rows, the batch has {B}"
        assert self.length + T <= self.capacity, f"cache of {self.capacity} tokens is too short for {self.length} + {T}"
        self.valid[:, self.length:self.length + T] = valid
        self.length += T

    def append(self, layer: int, latent: torch.Tensor) -> torch.Tensor:
        """Stores the newest (B, T, kv_lora + rope) and returns all latents so far (B, S, kv_lora + rope)."""
        store = self.latents[layer]
        store[:, self.length - latent.shape[1]:self.length] = latent
        return store[:, :self.length]

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these rows (a row may repeat): drops finished responses, or fans a prompt out to k samples. Columns on the left that none
        of them needs are cut off."""
        first = int((self.valid[rows, :self.length].any(0).cumsum(0) == 0).sum())       # all of them where no row is left
        self.latents, self.valid = [latent[rows, first:] for latent in self.latents], self.valid[rows, first:]
        self.length -= first

    def join(self, other: "Cache", room: int) -> None:
        """Puts the other cache's rows below these, the newest tokens of all in one column, with room for `room` more; what that leaves
        open on the left is padding."""
        length = max(self.length, other.length)

        def joined(a, b):
            out = a.new_zeros(len(a) + len(b), length + room, *a.shape[2:])
            out[:len(a), length - self.length:length] = a[:, :self.length]
            out[len(a):, length - other.length:length] = b[:, :other.length]
            return out
        self.latents = [joined(a, b) for a, b in zip(self.latents, other.latents)]
        self.valid, self.length = joined(self.valid, other.valid), length


# ---------------------------------------------------------------------------------------------------------------- attention

@dataclass
class Context:
    """What all layers of one forward share."""
    rotation: torch.Tensor      # (B, T, 1, rope / 2) complex
    mask: torch.Tensor          # (B or 1, 1, T, S), 0 where a token may look and MASKED where not
    valid: torch.Tensor | None  # (B, T) bool, False = padding
    cache: Cache | None
    aux: list | None            # collects the balance loss of every MoE layer


class MLA(nn.Module):
    """Multi-head Latent Attention (DS3 2.1.1): keys and values come from one small latent, position from one shared RoPE key."""

    def __init__(self, cfg: LanguageConfig, index: int):
        super().__init__()
        self.cfg, self.index, self.heads, self.kernel = cfg, index, cfg.heads, "manual"
        self.scale = cfg.qk_dim ** -0.5 * mscale(cfg.rope_factor) ** 2
        linear = lambda a, b: nn.Linear(a, b, bias=False)
        self.q_a, self.q_norm, self.q_b = linear(cfg.dim, cfg.q_lora), RMSNorm(cfg.q_lora, 1e-6), linear(cfg.q_lora, cfg.heads * cfg.qk_dim)
        self.kv_a, self.kv_norm = linear(cfg.dim, cfg.kv_lora + cfg.rope), RMSNorm(cfg.kv_lora, 1e-6)     # 1e-6: DeepSeek's code
        self.kv_b = linear(cfg.kv_lora, cfg.heads * (cfg.nope + cfg.v_dim))
        self.o = linear(cfg.heads * cfg.v_dim, cfg.dim)
        self.max_logits = None                                              # (H,) over the training forwards since QK-Clip last used it

    def forward(self, x: torch.Tensor, ctx: Context) -> torch.Tensor:
        cfg, (B, T, _) = self.cfg, x.shape
        q = self.q_b(self.q_norm(self.q_a(x), self.scale)).view(B, T, cfg.heads, cfg.qk_dim)     # softmax scale included
        q_nope, q_rope = q.split([cfg.nope, cfg.rope], -1)
        c_kv, k_rope = self.kv_a(x).split([cfg.kv_lora, cfg.rope], -1)
        c_kv, q_rope = self.kv_norm(c_kv), rotate(q_rope, ctx.rotation)
        k_rope = rotate(k_rope[:, :, None], ctx.rotation)               # (B, T, 1, rope): one key head for all
        if ctx.cache is not None:
            latent = ctx.cache.append(self.index, torch.cat([c_kv, k_rope[:, :, 0]], -1))
            if latent.shape[1] > T:
                return self.o(self.absorbed(q_nope, q_rope, latent, ctx.mask))
        return self.o(self.expanded(q_nope, q_rope, c_kv, k_rope, ctx))

    def expanded(self, q_nope, q_rope, c_kv, k_rope, ctx: Context) -> torch.Tensor:
        """Training and prefill: keys and values are unpacked from the latent. -> (B, T, H * v_dim)"""
        cfg, (B, T, _) = self.cfg, c_kv.shape
        k_nope, v = self.kv_b(c_kv).view(B, T, cfg.heads, cfg.nope + cfg.v_dim).split([cfg.nope, cfg.v_dim], -1)
        q = torch.cat([q_nope, q_rope], -1).transpose(1, 2)                 # (B, H, T, nope + rope)
        k = torch.cat([k_nope, k_rope.expand(-1, -1, cfg.heads, -1)], -1).transpose(1, 2)
        if self.kernel == "sdpa":
            self.record(lambda: _chunked_max(q, k, ctx.mask), ctx)
            y = attend(q, k, v.transpose(1, 2), ctx.mask, "sdpa")
        else:
            logits = attention_logits(q, k, ctx.mask)
            self.record(lambda: logits.flatten(2).amax((0, 2)), ctx)
            y = logits.softmax(-1) @ v.transpose(1, 2)
        return y.transpose(1, 2).flatten(2)

    def absorbed(self, q_nope, q_rope, latent, mask) -> torch.Tensor:
        """Decoding: kv_b moves into the query and the output, so that nothing is unpacked per cached token. -> (B, T, H * v_dim)"""
        cfg = self.cfg
        up_k, up_v = self.kv_b.weight.view(cfg.heads, cfg.nope + cfg.v_dim, cfg.kv_lora).to(q_nope.dtype).split([cfg.nope, cfg.v_dim], 1)
        q_c = torch.einsum("bthn,hnc->bhtc", q_nope, up_k)                  # (B, H, T, kv_lora)
        q = torch.cat([q_c, q_rope.transpose(1, 2)], -1).flatten(1, 2)      # (B, H * T, kv_lora + rope): all heads share the keys
        latent = latent.to(q.dtype)                                         # (B, S, kv_lora + rope)
        logits = (q @ latent.mT).unflatten(1, (cfg.heads, -1)) + mask       # (B, H, T, S)
        y = (logits.softmax(-1).flatten(1, 2) @ latent[..., :cfg.kv_lora]).unflatten(1, (cfg.heads, -1))
        return torch.einsum("bhtc,hvc->bthv", y, up_v).flatten(2)

    @torch.no_grad()
    def record(self, maxima, ctx: Context) -> None:
        """Largest softmax input per head over real, causal positions (K2 Alg. 1), without gradient; `maxima()` gives (H,)."""
        if self.training and ctx.cache is None:
            new = maxima().float()
            self.max_logits = new if self.max_logits is None else torch.maximum(self.max_logits, new)       # micro-batches add up


def _chunked_max(q, k, mask, most: int = 2 ** 24) -> torch.Tensor:
    """SDPA hides its logits: recompute their maxima per head (H,), a few rows of the batch at a time, `most` logits (ours)."""
    rows = max(1, most // (q.shape[1] * q.shape[2] * k.shape[2]))
    parts = zip(q.split(rows), k.split(rows), mask.expand(len(q), -1, -1, -1).split(rows))
    return torch.stack([attention_logits(a, b, m).amax((0, 2, 3)) for a, b, m in parts]).amax(0)


# ---------------------------------------------------------------------------------------------------------------- experts

class SwiGLU(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, dim: int, ffn: int):
        super().__init__()
        self.gate_up, self.down = nn.Linear(dim, 2 * ffn, bias=False), nn.Linear(ffn, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(swiglu(self.gate_up(x)))


class Router(nn.Module):
    """Sigmoid scores; the selection bias decides who is chosen, never how much it counts (DS3 2.1.2)."""

    def __init__(self, cfg: LanguageConfig):
        super().__init__()
        self.k, self.scaling = cfg.top_k, cfg.routed_scaling
        self.weight = nn.Parameter(torch.empty(cfg.experts, cfg.dim))
        self.register_buffer("e_score_correction_bias", torch.zeros(cfg.experts))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, d) -> scores (N, E) fp32, chosen (N, k), weights (N, k) that sum to routed_scaling."""
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.weight.float()).sigmoid()
        chosen = (scores.detach() + self.e_score_correction_bias).topk(self.k, sorted=False).indices
        weights = scores.gather(1, chosen)
        return scores, chosen, weights / weights.sum(-1, keepdim=True) * self.scaling


class MoE(nn.Module):
    """Routed experts plus a shared one that is always on and not scaled. No token is dropped."""

    def __init__(self, cfg: LanguageConfig):
        super().__init__()
        self.cfg, self.kernel = cfg, "loop"
        self.router = Router(cfg)
        self.gate_up = nn.Parameter(torch.empty(cfg.experts, 2 * cfg.expert_ffn, cfg.dim))
        self.down = nn.Parameter(torch.empty(cfg.experts, cfg.dim, cfg.expert_ffn))
        self.shared = SwiGLU(cfg.dim, cfg.shared * cfg.expert_ffn)
        self.load = None                                                    # (E,) token counts since the last balancing step

    def forward(self, x: torch.Tensor, valid: torch.Tensor | None = None, aux: list | None = None) -> torch.Tensor:
        """(B, T, d) -> the same; `valid` (B, T) marks real tokens. In training, counts the load and appends the balance loss to `aux`."""
        flat = x.flatten(0, 1)                                              # (N, d)
        scores, chosen, weights = self.router(flat)
        if self.training:
            balance = self.measure(scores.view(*x.shape[:2], -1), chosen.view(*x.shape[:2], -1), valid)
            if aux is not None:
                aux.append(balance)
        elif self.kernel == "grouped" and scores.numel() <= chosen.numel() + self.cfg.experts * ALIGN:      # fewer rows than sorted, padded ones
            shares = torch.zeros_like(scores).scatter_(1, chosen, weights)  # (N, E)
            return self.shared(x) + experts_dense(flat, shares.to(x.dtype), self.gate_up, self.down).view_as(x)
        order = chosen.flatten().argsort(stable=True)                       # (N * k,) slots sorted by expert
        slots = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device)).view_as(chosen)
        counts = chosen.flatten().bincount(minlength=self.cfg.experts)
        y = EXPERTS[self.kernel](Dispatch.apply(flat, order, slots), counts, self.gate_up, self.down)      # (N * k, d)
        return self.shared(x) + Combine.apply(y, weights.to(y.dtype), order, slots).view_as(x)

    def measure(self, scores: torch.Tensor, chosen: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
        """Adds to the load (tokens per expert); returns the sequence-wise balance loss (DS3 Eq. 17-20) summed over rows.

        A sequence is a packed row, its padding left out.
        """
        picked = torch.zeros_like(scores).scatter_(-1, chosen, 1.0)         # (B, T, E)
        share = scores / scores.sum(-1, keepdim=True)
        real = torch.ones_like(picked[..., :1]) if valid is None else valid[..., None].float()
        count = real.sum(1).clamp(min=1)                                    # (B, 1)
        picked = (picked * real).sum(1)                                     # (B, E)
        f = picked * self.cfg.experts / (self.cfg.top_k * count)
        load = picked.sum(0).detach()
        self.load = load if self.load is None else self.load + load         # micro-batches add up
        return (f * (share * real).sum(1) / count).sum()

    @torch.no_grad()
    def update_bias(self, load: torch.Tensor, rate: float) -> None:
        """b_i += rate * (sign(e_i) - mean_j sign(e_j)), e_i = mean load - load_i: Moonlight's mean-free form (ML App. C)."""
        sign = (load.float().mean() - load.float()).sign()
        self.router.e_score_correction_bias += rate * (sign - sign.mean())


# ---------------------------------------------------------------------------------------------------------------- model

class Layer(nn.Module):
    """x + MLA(norm x), then x + FFN(norm x); the first layers have a plain SwiGLU instead of experts (K2 Table 2)."""

    def __init__(self, cfg: LanguageConfig, index: int):
        super().__init__()
        self.norm0, self.attn = RMSNorm(cfg.dim, cfg.eps), MLA(cfg, index)
        self.norm1 = RMSNorm(cfg.dim, cfg.eps)
        self.mlp = SwiGLU(cfg.dim, cfg.dense_ffn) if index < cfg.dense_layers else None
        self.moe = MoE(cfg) if index >= cfg.dense_layers else None

    def forward(self, x: torch.Tensor, ctx: Context) -> torch.Tensor:
        x = x + self.attn(self.norm0(x), ctx)
        h = self.norm1(x)
        return x + (self.mlp(h) if self.moe is None else self.moe(h, ctx.valid, ctx.aux))


def attention_mask(segments: torch.Tensor | None, cache: Cache | None, T: int, like: torch.Tensor) -> torch.Tensor:
    """(B or 1, 1, T, S) to add to the logits: causal, within the own document, never padding."""
    S = T if cache is None else cache.length
    steps = torch.arange(S, device=like.device)
    seen = (steps[S - T:, None] >= steps)[None]                             # (1, T, S)
    if cache is not None:
        seen = seen & cache.valid[:, None, :S]
    elif segments is not None:
        seen = seen & (segments[:, :, None] == segments[:, None]) & (segments > 0)[:, None]
    return torch.zeros(seen.shape, device=like.device, dtype=like.dtype).masked_fill_(~seen, MASKED)[:, None]


class LanguageModel(nn.Module):
    """Embeddings in, hidden states after the final norm out; `embed` and the untied `head` are called by the owner."""

    def __init__(self, cfg: LanguageConfig):
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.vocab, cfg.dim)
        self.layers = nn.ModuleList(Layer(cfg, i) for i in range(cfg.layers))
        self.norm = RMSNorm(cfg.dim, cfg.eps)
        self.head = nn.Linear(cfg.dim, cfg.vocab, bias=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=cfg.init_std)

    def forward(self, embeds: torch.Tensor, positions: torch.Tensor, segments: torch.Tensor | None = None,
                cache: Cache | None = None, aux: list | None = None) -> torch.Tensor:
        """embeds (B, T, d), positions (B, T), segments (B, T) or None -> hidden (B, T, d).

        Segments number the documents packed in a row, 0 is padding. With a cache the new tokens are appended to it, a row holds one
        document and segments only say which tokens are real. In training the list `aux` receives one balance loss a MoE layer, summed
        over rows.
        """
        B, T, _ = embeds.shape
        if cache is not None:
            cache.extend(torch.ones(B, T, dtype=torch.bool, device=embeds.device) if segments is None else segments > 0)
        cfg = self.cfg
        rotation = rope_1d(positions, cfg.rope, cfg.rope_theta, cfg.rope_factor, cfg.rope_original)
        mask = attention_mask(segments, cache, T, embeds)
        ctx = Context(rotation, mask, None if segments is None else segments > 0, cache, aux)
        x = embeds
        for layer in self.layers:
            x = layer(x, ctx)
        return self.norm(x)

    def update_bias(self, rate: float) -> None:
        """One balancing step of every router, from the loads of all training forwards since the last one."""
        for layer in self.layers[self.cfg.dense_layers:]:
            assert layer.moe.load is not None, "no load: run a forward in training mode before update_bias"
            layer.moe.update_bias(layer.moe.load, rate)
            layer.moe.load = None
