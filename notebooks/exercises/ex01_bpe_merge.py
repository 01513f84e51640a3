# made by make.py from source/; write your code where NotImplementedError is raised
"""Exercise 1: the merge step of byte-pair encoding.

Paper: Sennrich et al. 2016 (arXiv 1508.07909), section 3.2; the Kimi reports use it without a word. In nanokimi: nanokimi/tokenizer.py, where
rustbpe trains and tiktoken runs what you write here.

A tokenizer begins with 256 tokens, one a byte. Training counts which two neighbours meet most often, makes them one new token, and counts again.

Predict first:
1. What becomes of "aaaa" and of "aaa" when (a, a) is merged?
2. A word that occurs 50 times: does it weigh more in the counts than 50 different words with the same pair?
3. nanokimi never merges two digits, K2 merges up to three. What does that do to the number of tokens of "2026", and to learning sums?
"""
from collections import Counter

Pair = tuple[int, int]


def pair_counts(words: dict[tuple[int, ...], int]) -> Counter:
    """How often each pair of neighbours occurs.

    words: token ids of a word -> how often the word occurs. Returns pair -> count.
    In words: for every word, each two tokens next to each other count once for every time the word occurs. Places may overlap ("aaa" has two
    pairs), words have no neighbours outside of themselves.
    """
    raise NotImplementedError("your turn")


def merge(ids: list[int], pair: Pair, new: int) -> list[int]:
    """The ids with every occurrence of `pair` made into the one token `new`.

    ids (n,) -> (m,) with m <= n; the list given stays as it is.
    In words: go from left to right; where the next two tokens are the pair, write the new token and step over both.
    """
    raise NotImplementedError("your turn")
