"""Exercise 4 against the definition, and against documents that are alone."""
import torch

from ex04_packing_mask import NO_LOSS, packed_targets, packing_mask

SEGMENTS = torch.tensor([[1, 1, 1, 2, 2, 3, 0, 0], [1, 2, 2, 2, 2, 2, 2, 2]])
IDS = torch.tensor([[10, 11, 12, 20, 21, 30, 0, 0], [10, 20, 21, 22, 23, 24, 25, 26]])


def test_mask_entry_by_entry():
    got = packing_mask(SEGMENTS)
    assert got.dtype == torch.bool and got.shape == (2, 8, 8)
    for b, i, j in torch.cartesian_prod(torch.arange(2), torch.arange(8), torch.arange(8)).tolist():
        want = j <= i and SEGMENTS[b, i] == SEGMENTS[b, j] and SEGMENTS[b, j] > 0
        assert got[b, i, j] == want, f"row {b}: may token {i} see token {j}?"


def test_a_token_sees_itself_and_padding_nothing():
    got = packing_mask(SEGMENTS)
    assert torch.equal(got.diagonal(dim1=1, dim2=2), SEGMENTS > 0)
    assert not got[0, 6:].any() and not got[0, :, 6:].any()


def test_segments_need_not_be_in_order():
    assert packing_mask(torch.tensor([[2, 2, 1, 1]])).sum() == 6


def test_attention_in_a_row_equals_attention_alone():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 8, 4, dtype=torch.double)
    logits = (q @ k.mT).masked_fill(~packing_mask(SEGMENTS[:1]), -30000.0)
    packed = (logits.softmax(-1) @ v)[0]
    for start, end in [(0, 3), (3, 5), (5, 6)]:
        alone = torch.nn.functional.scaled_dot_product_attention(q[:, start:end], k[:, start:end], v[:, start:end], is_causal=True, scale=1.0)
        torch.testing.assert_close(packed[start:end], alone[0])


def test_targets():
    no = NO_LOSS
    assert packed_targets(IDS, SEGMENTS).tolist() == [[11, 12, no, 21, no, no, no, no], [no, 21, 22, 23, 24, 25, 26, no]]


def test_ids_stay_and_zero_is_a_token_like_any_other():
    ids = torch.tensor([[0, 5, 0, 0, 7]])
    assert packed_targets(ids, torch.tensor([[1, 1, 1, 2, 2]])).tolist() == [[5, 0, NO_LOSS, 7, NO_LOSS]]
    assert ids.tolist() == [[0, 5, 0, 0, 7]]
