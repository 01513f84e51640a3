# made by make.py from source/; write your code where NotImplementedError is raised
"""Exercise 7: Newton-Schulz, the heart of Muon.

Paper: Moonlight (arXiv 2502.16982), section 2; K2 (arXiv 2507.20534), algorithm 1. In nanokimi: nanokimi/muon.py, `newton_schulz`, `MuonClip`.

Muon replaces the momentum of a weight matrix by the nearest matrix whose singular values are all 1, up to the accuracy of five steps of a
polynomial: every direction is learned at the same speed, also those that gradients hardly show.

Predict first:
1. The singular values of a random 64 x 64 matrix lie between nearly 0 and 16. Between which numbers do they lie after five steps?
2. What does the update of a matrix of rank 1 look like? And what is its root mean square, compared with a matrix of full rank?
3. Why is max(n, m) in the scale, and not n or m?
"""
import torch

A, B, C = 3.4445, -4.7750, 2.0315


def newton_schulz(G: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Matrix (n, m), any scale, wide or tall -> (n, m) with the same singular vectors and singular values near 1. Zero stays zero.

    In words: X is G divided by its Frobenius norm (at least 1e-7). In each step X becomes A X + B (X X^T) X + C (X X^T)^2 X. A tall matrix
    is transposed before and after, so that X X^T is the smaller of the two products; the result would be the same without.
    """
    raise NotImplementedError("your turn")


def muon_update(gradient: torch.Tensor, momentum: torch.Tensor, mu: float = 0.95) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient (n, m) and momentum (n, m) of the step before -> (update (n, m), to be multiplied by the learning rate; new momentum (n, m)).

    In words: the new momentum is mu times the old one plus the gradient. Nesterov: what is made orthogonal is the gradient plus mu times the
    NEW momentum. The result is scaled by 0.2 sqrt(max(n, m)), so that its root mean square is near AdamW's 0.2. Both tensors given stay as they
    are.
    """
    raise NotImplementedError("your turn")
