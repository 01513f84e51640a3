"""Exercise 1 against tiktoken: a tokenizer trained and run with your two functions cuts text as tiktoken does with the same merges."""
from collections import Counter

import pytest
import tiktoken

from ex01_bpe_merge import merge, pair_counts

TEXT = "low lower lowest slow slower aaaa aaaaa banana bananas nab been seen banana low low 2026 2026 2020 "


@pytest.mark.parametrize("ids, want", [
    ([1, 1, 1, 1], [9, 9]), ([1, 1, 1], [9, 1]), ([1, 1, 2, 1, 1], [9, 2, 9]), ([2, 1, 1], [2, 9]), ([1], [1]), ([], []), ([1, 2, 1], [1, 2, 1])])
def test_a_pair_of_equals(ids, want):
    assert merge(ids, (1, 1), 9) == want


@pytest.mark.parametrize("ids, want", [([1, 2, 1, 2], [9, 9]), ([2, 1, 2], [2, 9]), ([2, 1], [2, 1]), ([1, 1, 2], [1, 9])])
def test_order_matters(ids, want):
    assert merge(ids, (1, 2), 9) == want


def test_the_new_token_is_not_merged_again_in_the_same_pass():
    assert merge([1, 2, 2], (1, 2), 1) == [1, 2]


def test_the_list_given_stays():
    ids = [1, 2, 3]
    merge(ids, (1, 2), 9)
    assert ids == [1, 2, 3]


def test_words_count_as_often_as_they_occur():
    assert pair_counts({(1, 2, 3): 5, (1, 2): 2, (4,): 9}) == Counter({(1, 2): 7, (2, 3): 5})


def test_a_pair_may_come_twice_in_a_word_and_overlap():
    assert pair_counts({(1, 1, 1): 1, (1, 2, 1, 2): 3}) == Counter({(1, 1): 2, (1, 2): 6, (2, 1): 3})


def test_trained_and_run_it_agrees_with_tiktoken():
    words = dict(Counter(tuple(word.encode()) for word in TEXT.split(" ")))
    ranks = {bytes([i]): i for i in range(256)}
    merges, names = [], [bytes([i]) for i in range(256)]
    for new in range(256, 276):
        counts = pair_counts(words)
        pair = max(sorted(counts), key=counts.__getitem__)                      # of equally frequent ones the first
        merges, names = [*merges, (pair, new)], [*names, names[pair[0]] + names[pair[1]]]
        ranks[names[-1]] = new
        words = dict(sum((Counter({tuple(merge(list(ids), pair, new)): times}) for ids, times in words.items()), Counter()))
    assert b"banana" in ranks and b"low" in ranks
    reference = tiktoken.Encoding("exercise", pat_str=r"[^ ]+| ", mergeable_ranks=ranks, special_tokens={})
    for word in [*TEXT.split(), "aaaaaaa", "bananananas", "slowest"]:
        ids = list(word.encode())
        for pair, new in merges:                                                # in the order in which they were learned
            ids = merge(ids, pair, new)
        assert ids == reference.encode(word), word
