"""Exercise 2 against a convolution, a loop, complex numbers, and nanokimi."""
import cmath

import pytest
import torch

from ex02_patches_and_rope import patchify, rope_2d
from nanokimi.language import rotate
from nanokimi.vision import VisionClip
from nanokimi.vision import patchify as nanokimi_patchify
from nanokimi.vision import rope_2d as nanokimi_angles


def test_patches_times_a_weight_are_a_convolution():
    torch.manual_seed(0)
    frames, conv = torch.randn(3, 8, 12, 3), torch.nn.Conv2d(3, 5, 4, stride=4, bias=False)
    want = conv(frames.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(-1, 5)             # (t * h * w, 5)
    torch.testing.assert_close(patchify(frames, 4) @ conv.weight.flatten(1).T, want)


def test_patches_are_nanokimis():
    frames = torch.randint(0, 256, (2, 8, 16, 3), dtype=torch.uint8)
    want, _ = nanokimi_patchify([VisionClip(frames.numpy(), "video")], 4)
    assert torch.equal(patchify(frames, 4), want)


def test_every_patch_by_a_loop():
    t, h, w, p = 2, 2, 3, 2
    frames = torch.arange(t * h * p * w * p * 3).view(t, h * p, w * p, 3)
    got = patchify(frames, p)
    assert got.shape == (t * h * w, 3 * p * p)
    for i in range(t * h * w):
        frame, row, column = i // (h * w), i // w % h, i % w
        patch = frames[frame, row * p:(row + 1) * p, column * p:(column + 1) * p]           # (p, p, 3)
        assert got[i].tolist() == [patch[y, x, c].item() for c in range(3) for y in range(p) for x in range(p)]


def test_rope_number_by_number():
    h, w, d, theta = 2, 3, 8, 100.0
    x = torch.randn(h * w, d, dtype=torch.double)
    got = rope_2d(x, h, w, theta)
    for i in range(h * w):
        for pair in range(d // 2):
            place = i % w if pair % 2 == 0 else i // w                                      # width first
            z = complex(*x[i, 2 * pair:2 * pair + 2]) * cmath.exp(1j * place * theta ** (-4 * (pair // 2) / d))
            assert complex(*got[i, 2 * pair:2 * pair + 2]) == pytest.approx(z, abs=1e-6)


def test_rope_is_nanokimis():
    x, angles = torch.randn(4 * 6, 16), nanokimi_angles([(4, 6)], 16, 10000.0)
    torch.testing.assert_close(rope_2d(x, 4, 6), rotate(x, torch.polar(torch.ones_like(angles), angles)), atol=1e-5, rtol=1e-5)


def test_products_depend_on_the_way_between_two_places_only():
    torch.manual_seed(0)
    q, k = torch.randn(2, 16, dtype=torch.double)
    rotated = lambda x: rope_2d(x.expand(30, -1), 5, 6).view(5, 6, -1)
    a, b = rotated(q), rotated(k)
    torch.testing.assert_close((a[0, 0] * b[1, 2]).sum(), (a[3, 3] * b[4, 5]).sum())
    assert not torch.isclose((a[0, 0] * b[1, 2]).sum(), (a[0, 0] * b[2, 1]).sum(), rtol=1e-3)


def test_the_first_patch_is_not_turned_and_lengths_stay():
    x = torch.randn(12, 8)
    got = rope_2d(x, 3, 4)
    torch.testing.assert_close(got[0], x[0])
    torch.testing.assert_close(got.norm(dim=1), x.norm(dim=1))
