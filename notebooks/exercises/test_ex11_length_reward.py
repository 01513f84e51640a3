"""Exercise 11: by hand, at the edges, and against nanokimi."""
import random

import pytest

from ex11_length_reward import length_reward, total_reward
from nanokimi.policy import length_reward as nanokimi_length_reward


def test_by_hand():
    assert length_reward([10, 20, 30, 15], [True, True, True, True]) == pytest.approx([0.5, 0.0, -0.5, 0.25])


def test_a_wrong_response_never_earns_anything():
    assert length_reward([10, 20, 30, 15], [False, False, False, True]) == pytest.approx([0.0, 0.0, -0.5, 0.25])


def test_shortest_and_longest_are_taken_over_wrong_ones_too():
    assert length_reward([20, 30, 10, 50], [True, True, False, False]) == pytest.approx([0.25, 0.0, 0.0, -0.5])


@pytest.mark.parametrize("correct", [[True] * 3, [False] * 3, [True, False, True]])
def test_equal_lengths(correct):
    assert length_reward([7, 7, 7], correct) == [0, 0, 0]
    assert length_reward([7], correct[:1]) == [0]


def test_it_is_nanokimis():
    draw = random.Random(0)
    for _ in range(50):
        lengths, correct = [draw.randint(1, 9) for _ in range(6)], [draw.random() < 0.5 for _ in range(6)]
        assert length_reward(lengths, correct) == pytest.approx(nanokimi_length_reward(lengths, correct))


def test_a_step_and_not_a_ramp():
    totals = [total_reward(1.0, -0.5, iteration, warmup=3, weight=0.4) for iteration in range(6)]
    assert totals == pytest.approx([1, 1, 1, 0.8, 0.8, 0.8])
    assert total_reward(0.0, 0.5, 0, warmup=0, weight=1.0) == pytest.approx(0.5)
