"""The few places where plain autograd is too slow on a CPU: hand-written backwards, and the kernels of experts and attention.

Each does what one line of torch would; tests/test_model.py holds that line. On a CPU a step costs what it moves through memory, so
everything here is about touching the large tensors less often. Left out: compiled kernels.
"""
import ctypes
import platform
import time
from functools import lru_cache

import torch
import torch.nn.functional as F

ALIGN = 64                      # rows; see experts_grouped and NanoKimi.target_logprobs


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks: otherwise every step pays the page faults of all its tensors again. Elsewhere nothing."""
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3                             # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2 ** 30), libc.mallopt(trim_threshold, 2 ** 31 - 1)


@lru_cache
def best_device() -> str:
    """What programs compute on where nobody says it: the first NVIDIA GPU, else the CPU. A GPU that is too old for this torch says so once."""
    if not torch.cuda.is_available():
        return "cpu"
    try:
        torch.ones(1, device="cuda").add(1).item()
        return "cuda"
    except RuntimeError as error:
        print(f"note: computing on the CPU, as the GPU cannot be used: {str(error).splitlines()[0]}")
        return "cpu"


@lru_cache
def faster_dtype() -> torch.dtype:
    """bfloat16 where its matmuls beat fp32's by 1.5x (AMX, AVX512-BF16), timed once a process, for a moment, or where a GPU has it; else float32.

    Where a processor does not know bfloat16 (AVX2 only, as in many laptops), its matmuls are emulated and twenty times slower."""
    if best_device() == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    seconds = {dtype: matmul_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return torch.bfloat16 if seconds[torch.float32] > 1.5 * seconds[torch.bfloat16] else torch.float32


def matmul_seconds(dtype: torch.dtype, times: int = 5) -> float:
    """The fastest of a few products of a size that training has; not many, as emulated bfloat16 takes a tenth of a second each."""
    a, b = torch.randn(512, 256, dtype=dtype), torch.randn(256, 512, dtype=dtype)
    a @ b                                                                   # a library prepares its kernel at the first call
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        a @ b
        taken.append(time.perf_counter() - start)
    return min(taken)


class Normalise(torch.autograd.Function):
    """F.rms_norm with a hand-written backward: half the passes over memory, which is what costs on a CPU."""

    @staticmethod
    def forward(ctx, x, gain, eps):
        norm = torch.linalg.vector_norm(x, 2, -1, keepdim=True, dtype=torch.float32)
        scale = (norm.square() / x.shape[-1] + eps).rsqrt().to(x.dtype)     # 1 / rms
        ctx.save_for_backward(x, scale, gain)
        return (x * scale).mul_(gain)

    @staticmethod
    def backward(ctx, grad):
        x, scale, gain = ctx.saved_tensors
        unit = x * scale
        along = grad * unit                                                 # its mean over d is what the norm takes away again
        mean = (along @ gain)[..., None] / -x.shape[-1]
        return (unit * mean).addcmul_(grad, gain).mul_(scale), along.flatten(0, -2).sum(0), None


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, kernel: str) -> torch.Tensor:
    """softmax(q k^T + mask) v: (B, H, T, .), q already scaled. `kernel` is "manual" (plain matmuls, fastest in bf16 on a CPU) or "sdpa"."""
    if kernel == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    return attention_logits(q, k, mask).softmax(-1) @ v


def attention_logits(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The softmax inputs (B, H, T, S); the mask is added in place, as masked_fill would copy the largest tensor of a layer twice."""
    logits = q @ k.transpose(-1, -2)
    return logits if mask is None else logits.add_(mask)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """(..., 2 * ffn) -> (..., ffn)."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def experts_loop(x: torch.Tensor, counts: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The readable reference: rows x (N, d) sorted by expert, counts (E,) -> (N, d)."""
    parts = x.split(counts.tolist())
    return torch.cat([F.linear(swiglu(F.linear(part, gate_up[e].to(x.dtype))), down[e].to(x.dtype)) for e, part in enumerate(parts)])


def experts_grouped(x: torch.Tensor, counts: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The same in two grouped matrix products. Each expert's rows are padded with zeros to a multiple of ALIGN: a CPU library compiles
    a kernel for every new shape, and counts that differ in every step would mean a hundred new ones a step."""
    ends, aligned = counts.cumsum(0), (counts + ALIGN - 1) // ALIGN * ALIGN
    aligned_ends = aligned.cumsum(0)
    shifts = (aligned_ends - aligned) - (ends - counts)                     # (E,) how far padding moves an expert's rows
    places = torch.arange(len(x), device=x.device) + shifts.repeat_interleave(counts, output_size=len(x))
    rows = Spread.apply(x, places, len(x) + len(counts) * (ALIGN - 1))      # the most there can be: a GPU need not be asked how many there are
    h = swiglu(F.grouped_mm(rows, gate_up.to(x.dtype).transpose(1, 2), offs=aligned_ends.int()))
    return Gather.apply(F.grouped_mm(h, down.to(x.dtype).transpose(1, 2), offs=aligned_ends.int()), places)


def experts_dense(x: torch.Tensor, shares: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """All experts on all tokens x (N, d), weighted by shares (N, E), 0 where an expert was not chosen -> (N, d). For the few tokens of a
    decoding step this is less work than sorting them, and than padding them by expert."""
    h = swiglu(F.linear(x, gate_up.to(x.dtype).flatten(0, 1)).unflatten(-1, (len(gate_up), -1)))         # (N, E, ffn)
    h = (h * shares[..., None]).transpose(0, 1)                             # (E, N, ffn)
    return torch.bmm(h, down.to(x.dtype).mT).sum(0)


class Spread(torch.autograd.Function):
    """Rows x (N, d) put at `places` (N,), all different, of `total` rows; zeros elsewhere."""

    @staticmethod
    def forward(ctx, x, places, total):
        ctx.save_for_backward(places)
        return x.new_zeros(total, x.shape[1]).index_copy_(0, places, x)

    @staticmethod
    def backward(ctx, grad):
        return grad.index_select(0, ctx.saved_tensors[0]), None, None


class Gather(torch.autograd.Function):
    """The way back: rows at `places` (N,) of y."""

    @staticmethod
    def forward(ctx, y, places):
        ctx.save_for_backward(places)
        ctx.total = len(y)
        return y.index_select(0, places)

    @staticmethod
    def backward(ctx, grad):
        return grad.new_zeros(ctx.total, grad.shape[1]).index_copy_(0, ctx.saved_tensors[0], grad), None


EXPERTS = {"loop": experts_loop, "grouped": experts_grouped}


class Dispatch(torch.autograd.Function):
    """Tokens x (N, d) copied to their k slots, sorted by expert: (N * k, d). `order` lists the slots, `slots` (N, k) is its inverse.

    Gathers both ways instead of scattered adds: fast, and bit-identical from run to run.
    """

    @staticmethod
    def forward(ctx, x, order, slots):
        ctx.save_for_backward(slots)
        return x.index_select(0, order // slots.shape[1])

    @staticmethod
    def backward(ctx, grad):
        slots, = ctx.saved_tensors
        return F.embedding_bag(slots, grad, mode="sum"), None, None


class Combine(torch.autograd.Function):
    """The weighted sum of each token's k expert outputs: y (N * k, d), weights (N, k) -> (N, d)."""

    @staticmethod
    def forward(ctx, y, weights, order, slots):
        ctx.save_for_backward(y, weights, order, slots)
        return F.embedding_bag(slots, y, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx, grad):
        y, weights, order, slots = ctx.saved_tensors
        grad = grad.index_select(0, order // slots.shape[1])                # (N * k, d)
        on_weights = (grad * y).sum(-1).take(slots)
        return grad * weights.take(order)[:, None], on_weights, None, None


class TokenLogProbs(torch.autograd.Function):
    """log softmax(logits)[target] in fp32 for (n, V) logits of any dtype, in chunks: no fp32 copy of all logits, forward or backward."""
    CHUNK = {"cpu": 64, "cuda": 8192}       # rows (ours): a processor's cache holds them; a GPU rather starts few kernels

    @staticmethod
    def forward(ctx, logits, targets):
        chunk = TokenLogProbs.CHUNK[logits.device.type]
        norm = torch.cat([part.float().logsumexp(-1) for part in logits.split(chunk)])                  # (n,)
        ctx.save_for_backward(logits, targets, norm)
        return logits.gather(1, targets[:, None])[:, 0].float() - norm

    @staticmethod
    def backward(ctx, grad):
        logits, targets, norm = ctx.saved_tensors
        out, chunk = torch.empty_like(logits), TokenLogProbs.CHUNK[logits.device.type]
        for i in range(0, len(logits), chunk):
            rows = slice(i, i + chunk)
            p = (logits[rows].float() - norm[rows, None]).exp_().mul_(-grad[rows, None])
            out[rows] = p.scatter_add_(1, targets[rows, None], grad[rows, None])
        return out, None


def token_logprobs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """logits (n, V) of any float dtype, targets (n,) -> log-probabilities (n,) fp32, differentiable."""
    return TokenLogProbs.apply(logits, targets)
