"""Exercise 7 against the singular value decomposition: the polynomial acts on singular values alone."""
import pytest
import torch

from ex07_newton_schulz import muon_update, newton_schulz

SHAPES = [(8, 8), (6, 20), (20, 6), (1, 5), (5, 1)]


def by_svd(G, steps=5):
    """The same by decomposing: singular values over the Frobenius norm, the polynomial on each."""
    U, s, Vh = torch.linalg.svd(G, full_matrices=False)
    s = s / s.norm()
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s ** 3 + 2.0315 * s ** 5
    return U @ torch.diag(s) @ Vh


def matrix(shape, seed=0):
    return torch.randn(shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 5])
def test_same_singular_vectors_and_the_polynomial_of_the_values(shape, steps):
    torch.testing.assert_close(newton_schulz(matrix(shape), steps), by_svd(matrix(shape), steps))


def test_scale_does_not_matter_and_the_matrix_given_stays():
    G = matrix((6, 9))
    copy = G.clone()
    torch.testing.assert_close(newton_schulz(1e-4 * G), newton_schulz(1e3 * G))
    assert torch.equal(G, copy)


def test_singular_values_are_near_one():
    s = torch.linalg.svdvals(newton_schulz(matrix((32, 64))))
    assert s.min() > 0.6 and s.max() < 1.25


def test_zero_stays_zero():
    assert torch.equal(newton_schulz(torch.zeros(3, 4)), torch.zeros(3, 4))


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_nesterov_momentum(shape):
    first, second = matrix(shape, 1), matrix(shape, 2)
    _, momentum = muon_update(first, torch.zeros_like(first), mu=0.9)
    torch.testing.assert_close(momentum, first)
    update, momentum = muon_update(second, momentum, mu=0.9)
    torch.testing.assert_close(momentum, 0.9 * first + second)
    torch.testing.assert_close(update, 0.2 * max(shape) ** 0.5 * by_svd(second + 0.9 * (0.9 * first + second)))


@pytest.mark.parametrize("shape", [(64, 64), (24, 96), (96, 24)])
def test_the_update_is_as_large_as_adamws(shape):
    update, _ = muon_update(matrix(shape), torch.zeros(shape, dtype=torch.double))
    assert 0.14 < update.square().mean().sqrt() < 0.24
