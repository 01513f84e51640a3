"""Exercise 8: logits before and after, head by head, and nanokimi's own clip."""
from types import SimpleNamespace

import pytest
import torch

from ex08_qk_clip import qk_clip
from nanokimi.muon import clip_heads

H, NOPE, ROPE, V, Q_LORA, KV_LORA, T = 4, 6, 4, 6, 5, 7, 9
MAX = torch.tensor([120.0, 20.0, 30.0, -5.0], dtype=torch.double)
GAMMA = torch.tensor([0.25, 1.0, 1.0, 1.0], dtype=torch.double)


def weights():
    torch.manual_seed(0)
    return torch.randn(H, NOPE + ROPE, Q_LORA, dtype=torch.double), torch.randn(H, NOPE + V, KV_LORA, dtype=torch.double)


def logits(q_b, kv_b):
    """(H, T, T) for some inputs; k_rope comes from a matrix that is shared by the heads and not clipped."""
    torch.manual_seed(1)
    c_q, c_kv, k_rope = (torch.randn(T, n, dtype=torch.double) for n in (Q_LORA, KV_LORA, ROPE))
    q = torch.einsum("tc,hnc->htn", c_q, q_b)
    k = torch.cat([torch.einsum("tc,hnc->htn", c_kv, kv_b[:, :NOPE]), k_rope.expand(H, -1, -1)], dim=-1)
    return q @ k.mT


def test_logits_of_a_clipped_head_shrink_by_gamma_and_the_others_stay():
    torch.testing.assert_close(logits(*qk_clip(*weights(), MAX, 30.0, NOPE)), GAMMA[:, None, None] * logits(*weights()))


def test_queries_and_keys_share_the_work():
    (q_b, kv_b), (new_q, new_kv) = weights(), qk_clip(*weights(), MAX, 30.0, NOPE)
    torch.testing.assert_close(new_q[0, :NOPE], 0.5 * q_b[0, :NOPE])
    torch.testing.assert_close(new_kv[0, :NOPE], 0.5 * kv_b[0, :NOPE])
    torch.testing.assert_close(new_q[0, NOPE:], 0.25 * q_b[0, NOPE:])


def test_values_stay():
    assert torch.equal(qk_clip(*weights(), MAX, 30.0, NOPE)[1][:, NOPE:], weights()[1][:, NOPE:])


@pytest.mark.parametrize("largest", [30.0, 29.0, 0.0, -5.0])
def test_heads_at_or_below_tau_are_left_alone(largest):
    new_q, new_kv = qk_clip(*weights(), torch.full((H,), largest, dtype=torch.double), 30.0, NOPE)
    assert torch.equal(new_q, weights()[0]) and torch.equal(new_kv, weights()[1])


def test_the_tensors_given_stay():
    q_b, kv_b = weights()
    qk_clip(q_b, kv_b, MAX, 30.0, NOPE)
    assert torch.equal(q_b, weights()[0]) and torch.equal(kv_b, weights()[1])


@torch.no_grad()
def test_it_is_nanokimis():
    q_b, kv_b = weights()
    attention = SimpleNamespace(cfg=SimpleNamespace(nope=NOPE), q_b=torch.nn.Linear(Q_LORA, H * (NOPE + ROPE)).double(),
                                kv_b=torch.nn.Linear(KV_LORA, H * (NOPE + V)).double())
    attention.q_b.weight.copy_(q_b.flatten(0, 1)), attention.kv_b.weight.copy_(kv_b.flatten(0, 1))
    clip_heads(attention, GAMMA)
    new_q, new_kv = qk_clip(q_b, kv_b, MAX, 30.0, NOPE)
    torch.testing.assert_close(new_q.flatten(0, 1), attention.q_b.weight)
    torch.testing.assert_close(new_kv.flatten(0, 1), attention.kv_b.weight)
