"""Exercise 12: what is chosen, what is left out, and ties."""
from collections import Counter

import pytest

from ex12_shortest_sampling import shortest_correct, shortest_set


def response(length, reward=1.0, tool=0):
    """A response of `length` tokens of its own; `tool` tokens of a tool's answer stand in the middle."""
    return [True] * (length // 2) + [False] * tool + [True] * (length - length // 2), reward


def test_the_shortest_right_one():
    assert shortest_correct([response(9), response(5), response(2, 0.0), response(7)], seed=0) == 1


def test_partial_credit_is_not_right():
    assert shortest_correct([response(9), response(5, 0.99)], seed=0) == 0
    assert shortest_correct([response(9, 0.0), response(5, 0.9)], seed=0) is None
    assert shortest_correct([], seed=0) is None


def test_what_a_tool_answered_is_not_length():
    assert shortest_correct([response(6), response(5, tool=30)], seed=0) == 1


def test_ties_go_by_seed_and_every_one_of_them_has_its_chance():
    responses = [response(4), response(8), response(4), response(4, 0.0), response(4)]
    chosen = Counter(shortest_correct(responses, seed) for seed in range(300))
    assert set(chosen) == {0, 2, 4} and min(chosen.values()) > 60
    assert [shortest_correct(responses, 17) for _ in range(5)] == [shortest_correct(responses, 17)] * 5


def test_unsolved_problems_are_left_out():
    problems = [[response(4, 0.0), response(5)], [response(3, 0.5)], [response(2), response(9)]]
    assert shortest_set(problems, seed=0) == [(0, 1), (2, 0)]


@pytest.mark.parametrize("seed", [0, 3])
def test_every_problem_breaks_its_ties_alone(seed):
    problems = [[response(4) for _ in range(8)] for _ in range(40)]
    chosen = Counter(answer for _, answer in shortest_set(problems, seed=seed))
    assert len(chosen) >= 5, f"40 problems with eight equal responses each: only {sorted(chosen)} were chosen"
    assert shortest_set(problems, seed) == shortest_set(problems, seed) != shortest_set(problems, seed + 1)


def test_problems_that_come_later_change_nothing():
    problems = [[response(4) for _ in range(8)] for _ in range(3)]
    assert shortest_set(problems, seed=0)[:2] == shortest_set(problems[:2], seed=0)
