"""Exercise 12: shortest rejection sampling.

Paper: Kimi k1.5 (arXiv 2501.12599), 2.4 (long2short). In nanokimi: nanokimi/long2short.py, `shortest`, `imitate_shortest`.

Sample several responses to a problem, keep the shortest right one, learn from it by imitation. What the model wrote counts as length, what a
tool answered does not.

Predict first:
1. Eight samples hardly differ in length. How much shorter can the responses become?
2. What happens to problems that are never solved? And what does that do to the mix of problems that is learned from?
3. Five responses are equally short. Why not take the first?
"""
import numpy as np

Response = tuple[list[bool], float]         # (for each token: did the model write it?, reward in [0, 1])


def shortest_correct(responses: list[Response], seed: int | list[int]) -> int | None:
    """The number of the shortest right response to one problem; None if nothing was right.

    In words: right means a reward of 1 here, partial credit is not enough (nanokimi counts boxes and points from 0.5 on). The length is the
    number of tokens that the model wrote itself. Of equally short ones a random one, each with the same chance; the same seed (anything that
    np.random.default_rng takes) gives the same choice.
    """
    # BEGIN SOLUTION
    lengths = {i: sum(wrote) for i, (wrote, reward) in enumerate(responses) if reward >= 1.0}
    if not lengths:
        return None
    equal = [i for i, length in lengths.items() if length == min(lengths.values())]
    return equal[np.random.default_rng(seed).integers(len(equal))]
    # END SOLUTION


def shortest_set(problems: list[list[Response]], seed: int) -> list[tuple[int, int]]:
    """What is learned from: (number of the problem, number of its response), in the order of the problems.

    In words: at most one response a problem; problems without a right one are left out. Each problem draws from a seed of its own, made from
    (seed, number of the problem): with one seed for all, ties would be broken the same way everywhere.
    """
    # BEGIN SOLUTION
    chosen = [(number, shortest_correct(responses, [seed, number])) for number, responses in enumerate(problems)]
    return [(number, response) for number, response in chosen if response is not None]
    # END SOLUTION
