"""Exercise 2: from pixels to patches, and 2D rotary positions.

Paper: Kimi-VL (arXiv 2504.07491), 2.1 MoonViT; K2.5 (arXiv 2602.02276), 4.2. In nanokimi: nanokimi/vision.py, `patchify`, `rope_2d`;
nanokimi/language.py, `rotate`.

The encoder reads a picture of any size as a row of patches. Attention does not know where a patch was, so that queries and keys are rotated
by angles that grow with the place: half of the pairs of numbers turn with x, half with y.

Predict first:
1. A picture that is 6 patches wide and 4 high: which rows of patchify's output are neighbours of row 7, left, right, above and below?
2. If every patch moves two to the right, what happens to the products of queries and keys?
3. Which pairs of numbers of a query tell two patches of the same column apart?
"""
import torch


def patchify(frames: torch.Tensor, patch: int) -> torch.Tensor:
    """frames (t, H, W, 3) -> patches (t * h * w, 3 * patch * patch), with h = H / patch and w = W / patch.

    In words: patches in raster order, frame by frame, then row by row, then from left to right. Inside a patch the numbers are
    channel-major, all of red first, each channel row by row: the order in which a convolution's weight (D, 3, patch, patch) lies in memory.
    """
    # BEGIN SOLUTION
    t, height, width, _ = frames.shape
    x = frames.reshape(t, height // patch, patch, width // patch, patch, 3)
    return x.permute(0, 1, 3, 5, 2, 4).reshape(-1, 3 * patch * patch)
    # END SOLUTION


def rope_2d(x: torch.Tensor, h: int, w: int, theta: float = 10000.0) -> torch.Tensor:
    """Rotates queries or keys x (h * w, d), patches in raster order, d a multiple of 4 -> the same shape.

    In words: there are d / 4 frequencies, number f is theta ** (-4 f / d). Neighbouring numbers (x0, x1), (x2, x3), ... are pairs. Pair 2 f
    turns by (column of the patch) * frequency f, pair 2 f + 1 by (row of the patch) * frequency f: width first, then height. To turn (a, b)
    by an angle is (a cos - b sin, a sin + b cos). Places count from 0.
    """
    # BEGIN SOLUTION
    d = x.shape[-1]
    frequency = theta ** (-torch.arange(0, d, 4).to(x.dtype) / d)                           # (d / 4,)
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    places = torch.stack([columns.flatten(), rows.flatten()], dim=-1)                       # (h * w, 2) = (x, y)
    angles = (places[:, None, :] * frequency[:, None]).flatten(1)                           # (h * w, d / 2)
    a, b, cos, sin = x[:, 0::2], x[:, 1::2], angles.cos(), angles.sin()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(1)
    # END SOLUTION
