"""MuonClip (K2 Alg. 1): Muon for matrices, AdamW for everything else, QK-Clip after the step; and the learning-rate schedule.

    optimizer = MuonClip(model.named_parameters(), lr=3e-3)
    for step in range(total):
        optimizer.set_schedule(wsd(step, total, warmup=50, decay_share=0.3))
        loss.backward(); optimizer.step(); optimizer.zero_grad(); qk_clip(model, tau=100.0)

With several processes each orthogonalises a share of the matrices (Moonlight's distributed Muon); every one keeps the whole momentum, as
sharding it (ZeRO-1) saves memory that we do not lack. Max logits over processes: team.share_statistics.
"""
import math
from collections import defaultdict

import torch
import torch.distributed as dist
from torch.optim.adamw import adamw

from . import team
from .kernels import faster_dtype

NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)    # ML#2: quintic with the steepest slope at 0
ADAMW_TABLES = ("language.embed.weight", "language.head.weight", "vision.embed.pos")    # they look like matrices but are not
# ours: elements per Newton-Schulz batch. On a CPU its temporaries fit the cache (1.5x faster); a GPU rather starts few kernels
CHUNK = {"cpu": 2 ** 17, "cuda": 2 ** 24}


def newton_schulz(update, dtype=torch.bfloat16, steps=5):
    """Orthogonalise a stack of wide matrices: every singular value is pushed to about 1 (ML#2; 0.7 to 1.2 after 5 steps).

    update (N, n, m) with n <= m, any scale -> (N, n, m) in `dtype`. A zero matrix stays zero.
    """
    assert update.ndim == 3 and update.shape[1] <= update.shape[2], f"expected (N, n, m) with n <= m, got {tuple(update.shape)}"
    a, b, c = NS_COEFFICIENTS
    X = update.to(dtype)
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)           # spectral norm <= Frobenius norm = 1
    for _ in range(steps):
        gram = torch.bmm(X, X.mT)                                      # (N, n, n)
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)        # b XX^T + c (XX^T)^2
        X = torch.baddbmm(X, poly, X, beta=a)                          # aX + b(XX^T)X + c(XX^T)^2 X
    return X


def rms_scale(n, m):
    """0.2 sqrt(max(n, m)): RMS(UV^T) = 1/sqrt(max(n, m)), so the update's RMS is AdamW's 0.2 (ML#2) and AdamW learning rates transfer."""
    return 0.2 * math.sqrt(max(n, m))


def orthogonal_updates(stacks, dtype=torch.bfloat16):
    """Newton-Schulz on a list of stacks (k, n, m); matrices of equal shape (or transposed shape) run as one batch.

    Returns the list of scaled updates, each shaped as its input: O_t of K2 Alg. 1.
    """
    wide = [(s.mT if s.shape[1] > s.shape[2] else s).to(dtype) for s in stacks]    # ML#2: transpose if rows > cols
    buckets = defaultdict(list)
    for i, s in enumerate(wide):
        buckets[s.shape[1:]].append(i)
    updates, batches = [None] * len(stacks), {shape: torch.cat([wide[i] for i in members]) for shape, members in buckets.items()}
    chunks = {(n, m): batch.split(max(1, CHUNK[batch.device.type] // (n * m))) for (n, m), batch in batches.items()}
    done = iter(shared_newton_schulz([chunk for parts in chunks.values() for chunk in parts], dtype))
    for (n, m), members in buckets.items():
        O = torch.cat([next(done) for _ in chunks[n, m]]).float().mul_(rms_scale(n, m))                   # (sum k, n, m)
        for i, part in zip(members, O.split([len(wide[i]) for i in members])):
            updates[i] = part.mT if stacks[i].shape[1] > n else part
    return updates


def shared_newton_schulz(chunks, dtype):
    """Newton-Schulz of every chunk (k, n, m), in order. Several processes do a share each and exchange what they did: the same numbers."""
    if team.size() == 1:
        return [newton_schulz(chunk, dtype) for chunk in chunks]
    owners = fair_shares([chunk.shape[1] * chunk.numel() for chunk in chunks], team.size())
    whole = torch.zeros(sum(chunk.numel() for chunk in chunks), dtype=dtype, device=chunks[0].device)
    parts = [part.view_as(chunk) for part, chunk in zip(whole.split([chunk.numel() for chunk in chunks]), chunks)]
    for part, chunk, owner in zip(parts, chunks, owners):
        if owner == team.rank():
            part.copy_(newton_schulz(chunk, dtype))
    dist.all_reduce(whole)                                             # everything else is zero: a sum that is exact
    return parts


def fair_shares(costs, processes):
    """Which process takes which job: the most expensive first, each to the one with the least to do."""
    owners, busy = [0] * len(costs), [0] * processes
    for job in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[job] = busy.index(min(busy))
        busy[owners[job]] += costs[job]
    return owners


def matrices(name, shape):
    """The stack of matrices (k, n, m) that the parameter `name` is to Muon, or None where AdamW takes it (ML#2)."""
    if len(shape) < 2:
        return None                                        # norm gains, biases: a vector has no singular values (ML#2)
    if name.endswith(ADAMW_TABLES):
        return None                                        # embeddings, head (ML#2); the position table is an embedding as well
    *stack, n, m = shape
    assert len(stack) <= 1, f"{name} {tuple(shape)}: expected a matrix (n, m) or stacked experts (E, n, m)"
    k = math.prod(stack)                                   # ML#2: every expert is its own matrix; one for all else: q_b and kv_b are
    if "gate_up" in name.split("."):                       # not split by head (max(n, m) too small), the ViT's qkv is one as released,
        return 2 * k, n // 2, m                            # but gate_proj and up_proj are two.
    return k, n, m                                         # The router and the patch embedding (out, 3 p p) count too (ML, KVL#2.2)


class MuonClip(torch.optim.Optimizer):
    """Muon + AdamW over `model.named_parameters()`, split by `matrices`. QK-Clip is the function below, called after step().

    lr, weight_decay: shared by both (ML#2), decay decoupled and with the unscaled lr, on norm gains too (ML App. D).
    ns_dtype: of Newton-Schulz; None = bfloat16 (Moonlight) where this machine multiplies it faster, else float32.
    Parameters without a gradient (the encoder in a text-only step) are left alone, decay included.
    update_rms (0-d tensor): RMS of the last Muon update before lr; 0.16 to 0.19 is healthy, far less means rank-deficient momentum.
    """
    def __init__(self, named_parameters, lr, weight_decay=0.1, momentum=0.95, betas=(0.9, 0.95), eps=1e-8, ns_dtype=None):
        named = [(name, p) for name, p in named_parameters if p.requires_grad]
        muon = [(p, stack) for name, p in named if (stack := matrices(name, p.shape))]
        rest = [p for name, p in named if not matrices(name, p.shape)]
        assert muon and rest, "MuonClip needs model.named_parameters() of a whole model: found no matrices or nothing but matrices"
        shared = dict(lr=lr, base_lr=lr, weight_decay=weight_decay)
        super().__init__([dict(params=[p for p, _ in muon], kind="muon", momentum=momentum, stacks=[s for _, s in muon], **shared),
                          dict(params=rest, kind="adamw", betas=betas, eps=eps, fused=True, **shared)], defaults={})
        self.ns_dtype, self.update_rms = ns_dtype or faster_dtype(), torch.tensor(0.0)

    def set_schedule(self, factor):
        """lr of every group = its base lr times factor."""
        for group in self.param_groups:
            group["lr"] = group["base_lr"] * factor

    def measured(self):
        """What a log should have of the last step."""
        return {"update_rms": self.update_rms.item()}

    @torch.no_grad()
    def step(self):
        """One update of all parameters that have a gradient."""
        for group in self.param_groups:
            self.muon_step(group) if group["kind"] == "muon" else self.adamw_step(group)

    def muon_step(self, group):
        """K2 Alg. 1, lines 2 to 5, with Moonlight's Nesterov momentum (ML#2 footnote 1)."""
        active = [(p, stack) for p, stack in zip(group["params"], group["stacks"]) if p.grad is not None]
        if not active:
            return
        params, grads = [p for p, _ in active], [p.grad for p, _ in active]
        M = [self.buffer(p, "momentum_buffer") for p in params]
        torch._foreach_mul_(M, group["momentum"])
        torch._foreach_add_(M, grads)                                              # M_t = mu M_{t-1} + G_t
        nesterov = torch._foreach_add(grads, M, alpha=group["momentum"])           # G_t + mu M_t
        O = orthogonal_updates([u.reshape(stack) for u, (_, stack) in zip(nesterov, active)], self.ns_dtype)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])       # unscaled lr
        torch._foreach_add_([p.view(stack) for p, stack in active], O, alpha=-group["lr"])
        self.update_rms.copy_(stacked_rms(O))                                      # in place: Fabric's wrapper shares this tensor

    def adamw_step(self, group):
        """AdamW by torch's fused kernel: one pass over memory instead of eight."""
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        m, v = [self.buffer(p, "exp_avg") for p in params], [self.buffer(p, "exp_avg_sq") for p in params]
        for p in params:
            self.state[p].setdefault("step", torch.zeros((), device=p.device))
        beta1, beta2 = group["betas"]
        adamw(params, [p.grad for p in params], m, v, [], [self.state[p]["step"] for p in params], fused=True, amsgrad=False,
              beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False)

    def buffer(self, p, name):
        """The state tensor of that name, zeros shaped as p at first use."""
        state = self.state[p]
        if name not in state:
            state[name] = torch.zeros_like(p)
        return state[name]


class AdamW(torch.optim.AdamW):
    """AdamW for everything, with the schedule and the settings of MuonClip's own AdamW part."""

    def __init__(self, parameters, lr, weight_decay):
        super().__init__([{"params": list(parameters), "base_lr": lr}], lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=weight_decay)

    set_schedule = MuonClip.set_schedule

    def measured(self):
        """As MuonClip's; nothing here."""
        return {}


def stacked_rms(updates):
    """Root mean square over all elements of a list of tensors, as a 0-d fp32 tensor."""
    norms = torch.stack(torch._foreach_norm(updates, 2, torch.float32))
    return (norms.square().sum() / sum(u.numel() for u in updates)).sqrt()


@torch.no_grad()
def qk_clip(model, tau=100.0):
    """K2 Alg. 1, QK-Clip in its MLA form: heads whose softmax input went above tau are scaled back to tau. Call after optimizer.step().

    Reads layer.attn.max_logits (H,) of the forward already done and edits q_b.weight and kv_b.weight in place; k_rope (shared by the
    heads) and V stay. Returns {"max_logit": largest softmax input, "clip_rate": share of heads clipped}. max_logits is used up (None).
    """
    attentions = [layer.attn for layer in model.language.layers]
    assert all(attn.max_logits is not None for attn in attentions), "no max_logits: run a forward in training mode before qk_clip"
    S_max = torch.stack([attn.max_logits for attn in attentions])                  # (L, H)
    assert torch.isfinite(S_max).all(), f"softmax inputs are not finite: {S_max.tolist()}"
    clipped = S_max > tau
    gammas = torch.where(clipped, tau / S_max, torch.ones_like(S_max))             # (L, H)
    for layer in clipped.any(1).nonzero().flatten().tolist():
        clip_heads(attentions[layer], gammas[layer])
    for attn in attentions:
        attn.max_logits = None
    return {"max_logit": S_max.max().item(), "clip_rate": clipped.float().mean().item()}


def clip_heads(attn, gamma):
    """Multiply head h's softmax input by gamma[h] through its weights. gamma (H,)."""
    H, nope = len(gamma), attn.cfg.nope
    q = attn.q_b.weight.view(H, -1, attn.q_b.in_features)                          # (H, nope + rope, q_lora)
    kv = attn.kv_b.weight.view(H, -1, attn.kv_b.in_features)                       # (H, nope + v, kv_lora)
    gamma = gamma.view(H, 1, 1)
    q[:, :nope] *= gamma.sqrt()                                                    # W_qc
    kv[:, :nope] *= gamma.sqrt()                                                   # W_kc; the V rows stay
    q[:, nope:] *= gamma                                                           # W_qr takes all of it: W_kr is shared by the heads


def wsd(step, total, warmup, decay_share, floor=0.1):
    """Learning-rate factor at `step` of `total`: linear warm-up, constant, cosine to `floor` (K2#2.5: 2e-4 -> 2e-5, so 0.1).

    warmup: steps; decay_share: share of `total` spent decaying (K2: 5.5T of 15.5T tokens = 0.35). Past the end it stays at `floor`.
    """
    decay = decay_share * total
    if step < warmup:
        return (step + 1) / warmup
    if step < total - decay or decay == 0:
        return 1.0
    progress = min(1.0, (step - (total - decay)) / decay)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
