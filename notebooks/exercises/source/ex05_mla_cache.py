"""Exercise 5: attention from a compressed cache.

Paper: DeepSeek-V3 (arXiv 2412.19437), 2.1.1 (Multi-head Latent Attention); K2 (arXiv 2507.20534), 2.3. In nanokimi: nanokimi/language.py,
`MLA.absorbed` and `Cache`.

All heads' keys and values come from one small latent per token, so that only the latent is kept: [c_kv | k_rope]. The matrix that would unpack
it, kv_b, moves to the other side of the products: into the query, and behind the weighted sum. Nothing is unpacked per cached token.

Predict first:
1. K2 has 64 heads, keys without position of 128 numbers and values of 128, kv_lora 512, rope 64. How many numbers a token does the cache hold,
   and how many would plain keys and values take?
2. Why can k_rope not be made from c_kv, as the rest of the key is?
3. Absorbing saves memory when one token is decoded. Does it save multiplications when a whole prompt is read?
"""
import torch
import torch.nn.functional as F


def rotate(x: torch.Tensor, positions: torch.Tensor, theta: float = 50000.0) -> torch.Tensor:
    """RoPE on interleaved pairs, given: x (T, rope), positions (T,) -> (T, rope)."""
    frequency = theta ** (-torch.arange(0, x.shape[-1], 2).float() / x.shape[-1])
    angles = positions[:, None] * frequency
    a, b = x[:, 0::2], x[:, 1::2]
    return torch.stack([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1).flatten(1)


def compress(x: torch.Tensor, kv_a: torch.Tensor, gain: torch.Tensor, positions: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """What the cache keeps of tokens x (T, d): latent (T, kv_lora + rope).

    kv_a (kv_lora + rope, d) is a weight as nn.Linear has it, gain (kv_lora,) that of RMSNorm, positions (T,).
    In words: kv_a makes [c_kv | k_rope] of x. c_kv is normalised: divided by the root of (mean of its squares + eps), times gain. k_rope is
    rotated by its position and not normalised. Both are stored that way, so that nothing needs to be done to them again.
    """
    # BEGIN SOLUTION
    kv_lora = len(gain)
    c_kv, k_rope = F.linear(x, kv_a).split([kv_lora, len(kv_a) - kv_lora], dim=-1)
    return torch.cat([F.rms_norm(c_kv, (kv_lora,), gain, eps), rotate(k_rope, positions)], dim=-1)
    # END SOLUTION


def absorbed(q_nope: torch.Tensor, q_rope: torch.Tensor, latent: torch.Tensor, kv_b: torch.Tensor) -> torch.Tensor:
    """Attention of one new token over S cached ones (itself included) -> (H, v).

    q_nope (H, nope), q_rope (H, rope) already rotated, latent (S, kv_lora + rope) from `compress`, kv_b (H, nope + v, kv_lora): a head's
    first nope rows unpack its key, the others its value.
    In words: the logit of head h and token s is (q_nope . key + q_rope . k_rope) / sqrt(nope + rope), where key = up_k c_kv. Because
    q . (up_k c) = (up_k^T q) . c, the query is brought into the latent space once; the weighted sum is taken over latents, and up_v
    unpacks the sum, once a head. No key without position and no value of a cached token may be made, for all heads at once or head by head.
    """
    # BEGIN SOLUTION
    nope, kv_lora = q_nope.shape[1], kv_b.shape[2]
    up_k, up_v = kv_b[:, :nope], kv_b[:, nope:]
    q = torch.cat([torch.einsum("hn,hnc->hc", q_nope, up_k), q_rope], dim=-1)              # (H, kv_lora + rope)
    weights = (q @ latent.T / (nope + q_rope.shape[1]) ** 0.5).softmax(-1)                  # (H, S)
    return torch.einsum("hc,hvc->hv", weights @ latent[:, :kv_lora], up_v)
    # END SOLUTION
