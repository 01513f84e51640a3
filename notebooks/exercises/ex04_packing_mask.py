# made by make.py from source/; write your code where NotImplementedError is raised
"""Exercise 4: several documents in one row.

Paper: Kimi k1.5 (arXiv 2501.12599), 2.5.2 (packing in SFT); K2.5 (arXiv 2602.02276), appendix C.1. In nanokimi: nanokimi/language.py,
`attention_mask`; nanokimi/data.py, `to_batch`.

Short documents are packed into rows of one length. A document must learn as if it were alone: it sees nothing of its neighbours, and its last
token does not predict the first token of the next one.

Predict first:
1. segments = [1, 1, 2, 2, 0]: how many of the 25 entries of the mask are True?
2. What would the loss on a document's first token measure if its neighbour did predict it?
3. A row of the mask that is False everywhere: what does softmax make of it if masked logits are -inf? And if they are -30000?
"""
import torch

NO_LOSS = -100


def packing_mask(segments: torch.Tensor) -> torch.Tensor:
    """segments (B, T), the number of the document that a token belongs to, 0 = padding -> bool (B, T, T), True where query i may see key j.

    In words: a token sees itself and earlier tokens of its own document. Padding sees nothing and is never seen.
    """
    raise NotImplementedError("your turn")


def packed_targets(ids: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """ids (B, T), segments (B, T) -> targets (B, T), NO_LOSS where nothing is predicted.

    In words: the target of a token is the token after it, if that one is of the same document. The last token of each document, the end of
    the row and padding have none.
    """
    raise NotImplementedError("your turn")
