"""Exercise 5 against unpacked keys and values, and against nanokimi's attention without any cache."""
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ex05_mla_cache import absorbed, compress
from nanokimi.config import LanguageConfig
from nanokimi.language import MLA, Context, attention_mask, rope_1d
from nanokimi.language import rotate as nanokimi_rotate

H, NOPE, ROPE, V, LORA = 4, 8, 6, 11, 12        # so that no two of the sizes below are equal


def tensors(S, dtype=torch.double):
    torch.manual_seed(0)
    shapes = (H, NOPE), (H, ROPE), (S, LORA + ROPE), (H, NOPE + V, LORA)
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def unpacked(q_nope, q_rope, latent, kv_b):
    """Plain attention, head by head, with keys and values made for every cached token."""
    out = []
    for h in range(H):
        key = torch.cat([latent[:, :LORA] @ kv_b[h, :NOPE].T, latent[:, LORA:]], dim=1)     # (S, nope + rope)
        weights = (key @ torch.cat([q_nope[h], q_rope[h]]) / (NOPE + ROPE) ** 0.5).softmax(0)
        out.append(weights @ (latent[:, :LORA] @ kv_b[h, NOPE:].T))
    return torch.stack(out)


@pytest.mark.parametrize("S", [1, 7])
def test_absorbed_equals_unpacked(S):
    torch.testing.assert_close(absorbed(*tensors(S)), unpacked(*tensors(S)))


class Shapes(TorchDispatchMode):
    """Notes the shapes of all tensors that are made."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.made += [tuple(out.shape)] if isinstance(out, torch.Tensor) else []
        return out


def test_nothing_is_unpacked_per_cached_token():
    S = 500
    with Shapes() as shapes:
        absorbed(*tensors(S))
    unpacked = [shape for shape in shapes.made if S in shape and {NOPE, V, NOPE + V, NOPE + ROPE} & set(shape)]
    assert not unpacked, f"a tensor of {unpacked[0]} was made: keys or values of {S} cached tokens"


def attention():
    """nanokimi's MLA with random weights and gains."""
    torch.manual_seed(1)
    mla = MLA(LanguageConfig(dim=16, heads=H, q_lora=14, kv_lora=LORA, nope=NOPE, rope=ROPE, v_dim=V), 0).eval()
    for p in mla.parameters():
        torch.nn.init.normal_(p, mean=1.0 if p.dim() == 1 else 0.0, std=0.4)
    return mla


@torch.no_grad()
def test_latents_are_what_nanokimi_caches():
    mla, x, positions = attention(), torch.randn(5, 16), torch.tensor([0, 1, 2, 3, 40])
    x[2] = 0                                                                    # eps is there for this one
    c_kv, k_rope = mla.kv_a(x).split([LORA, ROPE], -1)
    want = torch.cat([mla.kv_norm(c_kv), nanokimi_rotate(k_rope, rope_1d(positions, ROPE, 50000.0)[:, 0])], -1)
    torch.testing.assert_close(compress(x, mla.kv_a.weight, mla.kv_norm.weight, positions), want)


@torch.no_grad()
def test_token_by_token_equals_the_whole_row_at_once():
    mla, T = attention(), 6
    x, rotation = torch.randn(1, T, 16), rope_1d(torch.arange(T)[None], ROPE, 50000.0)
    want = mla(x, Context(rotation, attention_mask(None, None, T, x), None, None, None))[0]
    cache = torch.zeros(0, LORA + ROPE)
    for i in range(T):
        token, positions = x[0, i:i + 1], torch.tensor([i])
        cache = torch.cat([cache, compress(token, mla.kv_a.weight, mla.kv_norm.weight, positions)])
        q_nope, q_rope = mla.q_b(mla.q_norm(mla.q_a(token))).view(H, NOPE + ROPE).split([NOPE, ROPE], -1)
        y = absorbed(q_nope, nanokimi_rotate(q_rope, rotation[0, i]), cache, mla.kv_b.weight.view(H, NOPE + V, LORA))
        torch.testing.assert_close(mla.o(y.flatten()), want[i], atol=1e-5, rtol=1e-5, msg=lambda text: f"token {i}: {text}")
