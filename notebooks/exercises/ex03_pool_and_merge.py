# made by make.py from source/; write your code where NotImplementedError is raised
"""Exercise 3: the mean over time and the 2x2 merge.

Paper: K2.5 (arXiv 2602.02276), 4.2 (MoonViT-3D). In nanokimi: nanokimi/vision.py, `merge`.

After the encoder, a clip of t frames becomes as many tokens as one picture of its size: first the mean over its frames, then four neighbouring
patches make one token.

Predict first:
1. How many tokens does a clip of 4 frames of 8 x 6 patches take? And one of 3 frames?
2. The frames are averaged after the encoder, not before it. What could no longer be known if the pixels were averaged?
3. Are patches 0, 1, 2, 3 of a picture (raster order) one token? Of which width would that be true?
"""
import torch


def pool_and_merge(x: torch.Tensor, grids: list[tuple[int, int, int]]) -> torch.Tensor:
    """Encoder output x (P, D) of several clips one after another -> (M, 4, D), with P = sum of t h w and M = sum of h w / 4.

    grids: (t, h, w) of each clip, h and w even, t may differ. The patches of a clip are in raster order: frame, row, column.
    In words: for each clip, the mean over its t frames at every place; then every 2x2 block becomes a token of four vectors, in the order
    top left, top right, bottom left, bottom right. Blocks are in raster order, clips stay in their order.
    """
    raise NotImplementedError("your turn")
