"""Exercise 3 against a loop over tokens."""
import pytest
import torch

from ex03_pool_and_merge import pool_and_merge
from nanokimi.vision import merge, pack


def by_loop(x, t, h, w):
    """The definition, place by place: x (t * h * w, D) -> (h * w / 4, 4, D)."""
    at = lambda y, z: sum(x[(f * h + y) * w + z] for f in range(t)) / t
    return torch.stack([torch.stack([at(y, z), at(y, z + 1), at(y + 1, z), at(y + 1, z + 1)]) for y in range(0, h, 2) for z in range(0, w, 2)])


@pytest.mark.parametrize("grid", [(1, 2, 2), (1, 4, 6), (1, 6, 4), (2, 2, 4), (4, 4, 2), (3, 4, 4)])
def test_one_clip(grid):
    x = torch.randn(grid[0] * grid[1] * grid[2], 5, dtype=torch.double)
    torch.testing.assert_close(pool_and_merge(x, [grid]), by_loop(x, *grid))


def test_clips_of_different_lengths_side_by_side():
    grids = [(4, 2, 4), (1, 4, 4), (3, 2, 2), (1, 2, 4)]
    parts = [torch.randn(t * h * w, 3, dtype=torch.double) for t, h, w in grids]
    torch.testing.assert_close(pool_and_merge(torch.cat(parts), grids), torch.cat([by_loop(x, *grid) for x, grid in zip(parts, grids)]))


def test_a_clip_takes_as_many_tokens_as_a_picture():
    assert len(pool_and_merge(torch.randn(4 * 48, 2), [(4, 8, 6)])) == len(pool_and_merge(torch.randn(48, 2), [(1, 8, 6)])) == 12


def test_the_order_of_frames_is_lost_but_not_their_places():
    x = torch.randn(3, 8, 2, dtype=torch.double)
    torch.testing.assert_close(pool_and_merge(x.flatten(0, 1), [(3, 2, 4)]), pool_and_merge(x.flip(0).flatten(0, 1), [(3, 2, 4)]))
    assert not torch.allclose(pool_and_merge(x.flatten(0, 1), [(3, 2, 4)]), pool_and_merge(x.flip(1).flatten(0, 1), [(3, 2, 4)]))


def test_it_is_nanokimis():
    """nanokimi lays patches out block by block before the encoder; from there it only needs a mean and a view."""
    grids = [(4, 4, 6), (1, 2, 4)]
    x, packing = torch.randn(sum(t * h * w for t, h, w in grids), 3), pack(grids)
    want = merge(x[packing.order], packing.groups)[packing.rows]
    torch.testing.assert_close(pool_and_merge(x, grids), want)
