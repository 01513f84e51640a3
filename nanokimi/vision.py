"""MoonViT-3D and the projector: ONE encoder for pictures and clips (K2.5 report 4.1-4.2).

A clip is 1 to 4 frames of any size; a picture is a clip of one frame. All clips of a batch are one packed sequence of patches: no mask, and
no padding but a few rows at the end. Attention spans a whole clip (every frame sees every frame), then the mean over time and the 2x2 merge make h*w/4 media tokens.
Left out: nothing of the structure; the SigLIP initialisation (ours starts from scratch).
"""
import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from nanokimi.config import VisionConfig
from nanokimi.kernels import attend
from nanokimi.language import rotate

ALIGN = 256                     # patches; a CPU compiles a kernel for every new matmul shape
SAMPLE_FPS = 2.0                # K2.5: at most two frames a second


@dataclass(frozen=True)
class VisionClip:
    """Frames ready for the encoder: uint8 (t, H, W, 3), H and W multiples of 2 * patch; `seconds` is the time of the first frame."""
    frames: np.ndarray
    kind: str = "image"         # "image" | "video"
    seconds: float = 0.0

    def grid(self, patch: int) -> tuple[int, int, int]:
        """(t, h, w) in patches."""
        t, height, width, _ = self.frames.shape
        fits = height % (2 * patch) == 0 and width % (2 * patch) == 0
        assert fits, f"{width} x {height} px is not a multiple of {2 * patch} px: use prepare_image or prepare_video"
        return t, height // patch, width // patch

    def tokens(self, patch: int) -> int:
        """Media tokens of the clip: h * w / 4, whatever its number of frames."""
        _, h, w = self.grid(patch)
        return h * w // 4


# ---------------------------------------------------------------------------------------------------------------- pixels -> patches

Size = tuple[int, int]


def navit_resize(width: int, height: int, patch: int, max_patches: int, max_side: int) -> tuple[Size, Size]:
    """((width, height) after the resize, the same after zero-padding) in pixels. Never upscales (K2.5 navit_resize)."""
    area = max(1, width // patch) * max(1, height // patch)                 # whole patches only: the // decides token counts
    scale = min(1.0, math.sqrt(max_patches / area), max_side * patch / width, max_side * patch / height)
    new = [min(max(1, int(side * scale)), max_side * patch) for side in (width, height)]
    padded = [math.ceil(side / (2 * patch)) * 2 * patch for side in new]     # multiple of the 2x2 merge, not a stretch
    return tuple(new), tuple(padded)


def _fit(frames: np.ndarray, cfg: VisionConfig, max_patches: int) -> np.ndarray:
    """(t, H, W, 3) -> the same, resized and padded; padding is pixel 0 before normalisation, so -1 after it."""
    right = frames.ndim == 4 and frames.shape[-1] == 3 and frames.dtype == np.uint8
    assert right, f"want uint8 (t, H, W, 3), got {frames.dtype} {frames.shape}"
    t, height, width, _ = frames.shape
    (w, h), (full_w, full_h) = navit_resize(width, height, cfg.patch, max_patches, cfg.max_side_patches)
    out = np.zeros((t, full_h, full_w, 3), np.uint8)
    for i, frame in enumerate(frames):
        same = (w, h) == (width, height)
        out[i, :h, :w] = frame if same else np.asarray(Image.fromarray(frame).resize((w, h), Image.Resampling.BICUBIC))
    return out


def prepare_image(pixels: np.ndarray, cfg: VisionConfig) -> VisionClip:
    """uint8 (H, W, 3) of any size -> a clip of one frame within cfg.max_image_patches (K2.5: 16384)."""
    return VisionClip(_fit(pixels[None], cfg, cfg.max_image_patches), "image")


def prepare_video(frames: np.ndarray, fps: float, cfg: VisionConfig, times: np.ndarray | None = None) -> list[VisionClip]:
    """uint8 (T, H, W, 3) at `fps` frames a second -> clips of up to cfg.frames consecutive sampled frames; the last may be shorter.
    times: (T,) seconds of frames that were sampled already (a film is too large to keep the others)."""
    assert len(frames) > 0 and fps > 0, f"a video needs frames and a frame rate, got {len(frames)} frames at {fps} fps"
    if times is None:
        sampled = sample_frames(len(frames), fps)
        frames, times = frames[sampled], sampled / fps
    fitted = _fit(frames, cfg, cfg.max_frame_patches)
    return [VisionClip(fitted[i:i + cfg.frames], "video", float(times[i])) for i in range(0, len(frames), cfg.frames)]


def sample_frames(total: int, fps: float) -> np.ndarray:
    """Which of `total` frames are taken: two a second, evenly spread from the first to the last (K2.5's processor)."""
    return np.linspace(0, total - 1, max(1, round(total * min(SAMPLE_FPS, fps) / fps))).round().astype(int)


def patchify(clips: list[VisionClip], patch: int) -> tuple[torch.Tensor, list[tuple[int, int, int]]]:
    """Clips -> (patches uint8 (P, 3 * patch * patch) in raster order and channel-major, grid_thw). The encoder normalises."""
    grids = [clip.grid(patch) for clip in clips]
    rows = []
    for clip, (t, h, w) in zip(clips, grids):
        x = clip.frames.reshape(t, h, patch, w, patch, 3).transpose(0, 1, 3, 5, 2, 4)      # (t, h, w, 3, p, p)
        rows.append(x.reshape(t * h * w, 3 * patch * patch))
    return torch.from_numpy(np.concatenate(rows)), grids


# ---------------------------------------------------------------------------------------------------------------- packing

@lru_cache(maxsize=4096)
def _blocks(t: int, h: int, w: int) -> np.ndarray:
    """Raster indices of a clip's patches, frame by frame, in 2x2-block order: four neighbours in a row become one media token."""
    return np.arange(t * h * w).reshape(t, h // 2, 2, w // 2, 2).transpose(0, 1, 3, 2, 4).ravel()


@dataclass
class Packing:
    """How the encoder lays out a batch: clips of equal length side by side, so that attention is one batched matmul a group."""
    order: torch.Tensor         # (P,) raster row of each packed row
    grids: list                 # distinct (h, w)
    places: torch.Tensor        # (P,) row of each patch in the concatenated position tables of `grids`
    rows: torch.Tensor          # (M,) packed media row of each media row in the caller's order
    groups: list                # (clips, t, patches a clip)


def pack(grid_thw: list[tuple[int, int, int]]) -> Packing:
    """The layout for these grids; pure index arithmetic on the CPU."""
    ranked = sorted(range(len(grid_thw)), key=lambda c: (grid_thw[c][0], math.prod(grid_thw[c])))        # equal (t, length) side by side
    grids = sorted({(h, w) for _, h, w in grid_thw})
    table = dict(zip(grids, _starts([h * w for h, w in grids])))
    first = _starts([t * h * w for t, h, w in grid_thw])
    order, places, rows, groups, done = [], [], [None] * len(grid_thw), Counter(), 0
    for c in ranked:
        t, h, w = grid_thw[c]
        order.append(first[c] + _blocks(t, h, w))                           # its patches, those of a merged token side by side
        places.append(np.tile(table[h, w] + _blocks(1, h, w), t))
        rows[c] = np.arange(done, done + h * w // 4)
        done += h * w // 4
        groups[t, t * h * w] += 1                                           # keeps the order of insertion
    groups = [(n, t, length) for (t, length), n in groups.items()]
    spare = -sum(n * length for n, _, length in groups) % ALIGN
    if spare:                                                               # tiny clips of nothing, so that few lengths P occur; give no media row
        order, places, groups = [*order, np.zeros(spare, int)], [*places, np.zeros(spare, int)], [*groups, (spare // 4, 1, 4)]
    order, places, rows = (torch.from_numpy(np.concatenate(x)) for x in (order, places, rows))
    return Packing(order, grids, places, rows, groups)


def _starts(lengths: list[int]) -> list[int]:
    """Where each of these consecutive pieces begins."""
    return [0, *accumulate(lengths)][:-1]


# ---------------------------------------------------------------------------------------------------------------- positions

def time_table(frames: int, dim: int) -> torch.Tensor:
    """Fixed sinusoids (frames, dim) = [sin | cos], not interleaved. Row 0 is not zero: frame 0 of a clip gets it, a picture does not."""
    angles = torch.outer(torch.arange(frames).float(), 10000.0 ** (-torch.arange(0, dim, 2).float() / dim))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def smooth_table(side: int, dim: int) -> torch.Tensor:
    """Where the learned position table (side, side, dim) starts: waves of half to two periods a picture in x, then in y. Places can be read
    off it from the first step; from small noise, they were learned more slowly. Ours: K2.5's table comes out of SigLIP."""
    frequency = math.pi / side * 2 ** torch.linspace(0, 2, dim // 4)                        # (dim / 4,)
    angles = torch.outer(torch.arange(side) + 0.5, frequency)
    wave = 0.7 * torch.cat([angles.sin(), angles.cos()], dim=1)                             # (side, dim / 2)
    return torch.cat([wave[None].expand(side, -1, -1), wave[:, None].expand(-1, side, -1)], dim=-1)


def rope_2d(grids: list[tuple[int, int]], head_dim: int, theta: float) -> torch.Tensor:
    """Angles (sum h * w, head_dim / 2) in pairs (x_f0, y_f0, x_f1, y_f1, ...): width first, the same for every frame."""
    frequency = theta ** (-torch.arange(0, head_dim, 4).float() / head_dim)                  # (head_dim / 4,)
    places = torch.cat([torch.cartesian_prod(torch.arange(h), torch.arange(w)) for h, w in grids]).flip(-1)     # (N, 2) = (x, y)
    return (places[:, None, :] * frequency[:, None]).flatten(1)


class PatchEmbed(nn.Module):
    """Pixels -> patch vectors with learned spatial and fixed temporal position (K2.5 "divided_fixed")."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.proj = nn.Linear(3 * cfg.patch ** 2, cfg.dim)                  # a Conv2d with stride = kernel, flattened
        self.pos = nn.Parameter(smooth_table(cfg.pos_grid, cfg.dim))        # ours: from scratch, no SigLIP table
        self.register_buffer("time", time_table(cfg.frames, cfg.dim), persistent=False)

    def table(self, grids: list[tuple[int, int]]) -> torch.Tensor:
        """The position table resampled to every distinct (h, w): (sum h * w, D)."""
        source = self.pos.permute(2, 0, 1)[None]                            # (1, D, G, G)
        parts = [F.interpolate(source, size=grid, mode="bicubic", align_corners=False)[0].flatten(1) for grid in grids]
        return torch.cat(parts, dim=1).t()

    def forward(self, patches: torch.Tensor, packing: Packing) -> torch.Tensor:
        dtype = torch.get_autocast_dtype(patches.device.type) if torch.is_autocast_enabled(patches.device.type) else self.pos.dtype
        pixels = patches.to(dtype).mul_(1 / 127.5).sub_(1)                  # mean = std = 0.5
        position = F.embedding(packing.places, self.table(packing.grids).to(dtype))
        x = self.proj(pixels) + position                                    # (P, D)
        if all(t == 1 for _, t, _ in packing.groups):
            return x
        parts = x.split([n * length for n, _, length in packing.groups])
        return torch.cat([self.add_time(part, n, t) for part, (n, t, _) in zip(parts, packing.groups)])

    def add_time(self, x: torch.Tensor, n: int, t: int) -> torch.Tensor:
        """Adds the sinusoid of each frame to n clips of t frames; pictures (t = 1) get nothing."""
        if t == 1:
            return x
        return (x.view(n, t, -1, x.shape[-1]) + self.time[:t, None].to(x.dtype)).view(x.shape)


# ---------------------------------------------------------------------------------------------------------------- encoder

class Attention(nn.Module):
    """Bidirectional attention within each clip, over all of its frames at once (K2.5 "spatial_temporal")."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        assert cfg.dim % (4 * cfg.heads) == 0, f"2D RoPE needs a head dimension divisible by 4, got {cfg.dim} / {cfg.heads}"
        self.heads, self.head_dim = cfg.heads, cfg.head_dim
        self.wqkv = nn.Linear(cfg.dim, 3 * cfg.dim)
        self.wo = nn.Linear(cfg.dim, cfg.dim)
        self.kernel = "manual"

    def forward(self, x: torch.Tensor, rotation: torch.Tensor, groups: list) -> torch.Tensor:
        P, D = x.shape
        qk, v = self.wqkv(x).split([2 * D, D], dim=-1)
        qk = rotate(qk.view(P, 2, self.heads, self.head_dim), rotation)
        if self.kernel == "manual":                                         # fp32 here: its matmuls need no kernel compiled per group size
            qk, v = qk.float(), v.float()
        sizes = [n * length for n, _, length in groups]
        out = []
        for a, b, (n, _, length) in zip(qk.split(sizes), v.split(sizes), groups):
            q, k = a.view(n, length, 2, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)     # (n, H, L, hd)
            with torch.autocast(x.device.type, enabled=False):
                y = attend(q, k, b.view(n, length, self.heads, self.head_dim).transpose(1, 2), None, self.kernel)
            out.append(y.transpose(1, 2).reshape(n * length, D))
        return self.wo(torch.cat(out).to(x.dtype))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.norm0, self.attn = nn.LayerNorm(cfg.dim, eps=cfg.eps), Attention(cfg)
        self.norm1, self.fc0, self.fc1 = nn.LayerNorm(cfg.dim, eps=cfg.eps), nn.Linear(cfg.dim, cfg.mlp), nn.Linear(cfg.mlp, cfg.dim)

    def forward(self, x: torch.Tensor, rotation: torch.Tensor, groups: list) -> torch.Tensor:
        x = x + self.attn(self.norm0(x), rotation, groups)
        return x + self.fc1(F.gelu(self.fc0(self.norm1(x)), approximate="tanh"))


class MoonViT3D(nn.Module):
    """(patches uint8 (P, 3 * patch * patch), grid_thw) -> (M, 4, D): M = sum h * w / 4 media tokens of four patches each, in order."""

    def __init__(self, cfg: VisionConfig):
        super().__init__()
        self.cfg = cfg
        self.embed = PatchEmbed(cfg)
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(cfg.dim, eps=cfg.eps)
        self.apply(_initialise)

    def forward(self, patches: torch.Tensor, grid_thw: list[tuple[int, int, int]]) -> torch.Tensor:
        assert sum(t * h * w for t, h, w in grid_thw) == len(patches), f"{len(patches)} patches do not fill the grids {grid_thw}"
        device = patches.device
        packing = pack(grid_thw)
        packing.places, order = packing.places.to(device), packing.order.to(device)
        x = self.embed(patches.index_select(0, order), packing)                             # (P, D)
        angles = rope_2d(packing.grids, self.cfg.head_dim, self.cfg.rope_theta).to(device)[packing.places]        # (P, hd / 2)
        scale = torch.tensor([self.cfg.head_dim ** -0.5, 1.0], device=device)      # the softmax scale rides on q's rotation, not on k's
        rotation = torch.polar(scale[:, None, None], angles[:, None, None])        # (P, 2, 1, hd / 2) complex
        for layer in self.layers:
            x = layer(x, rotation, packing.groups)
        return merge(self.norm(x), packing.groups).index_select(0, packing.rows.to(device))


def merge(x: torch.Tensor, groups: list) -> torch.Tensor:
    """Mean over time, four neighbouring patches to one token (K2.5 "sd2_tpool"): (P, D) -> (M, 4, D)."""
    D, out = x.shape[-1], []
    for part, (n, t, length) in zip(x.split([n * length for n, _, length in groups]), groups):
        out.append((part.view(n, t, length // t, D).mean(1) if t > 1 else part).view(-1, 4, D))
    return torch.cat(out)


class Projector(nn.Module):
    """(M, 4, D) -> (M, d_llm): LayerNorm per patch BEFORE the concatenation, then a two-layer MLP (K2.5 "patchmerger")."""

    def __init__(self, cfg: VisionConfig, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(cfg.dim, eps=cfg.eps)
        self.fc0, self.fc1 = nn.Linear(4 * cfg.dim, 4 * cfg.dim), nn.Linear(4 * cfg.dim, dim)
        self.apply(_initialise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc1(F.gelu(self.fc0(self.norm(x).flatten(1))))


def _initialise(module: nn.Module) -> None:
    """Ours (from scratch, no SigLIP): variance-preserving normal weights, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features ** -0.5)
        nn.init.zeros_(module.bias)
