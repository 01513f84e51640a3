# made by make.py from source/; write your code where NotImplementedError is raised
"""Exercise 11: the length reward of k1.5.

Paper: Kimi k1.5 (arXiv 2501.12599), 2.3.3. In nanokimi: nanokimi/policy.py, `length_reward`, `length_weight`.

Among the responses to one problem, short right ones earn something extra and long ones lose something. Wrong ones can only lose: otherwise
a quick wrong answer would be worth giving.

Predict first:
1. The only right response is the longest of the group. What does it get, and would you want that?
2. What does a short wrong response get?
3. Why is there no length reward at all at the beginning of training, rather than a small one that grows?
"""


def length_reward(lengths: list[int], correct: list[bool]) -> list[float]:
    """Lengths in tokens and verdicts of the k responses to one problem -> k numbers between -0.5 and 0.5.

    In words: lambda is 0.5 minus (length - shortest) / (longest - shortest), with shortest and longest taken over ALL responses, right and
    wrong. A right response gets lambda, a wrong one the smaller of 0 and lambda. If all are equally long, everybody gets 0.
    """
    raise NotImplementedError("your turn")


def total_reward(reward: float, length_score: float, iteration: int, warmup: int, weight: float) -> float:
    """Reward of a response together with its length reward, at an iteration (counted from 0).

    In words: in the first `warmup` iterations the reward alone; from then on the reward plus weight times the length reward. A step, not a ramp.
    """
    raise NotImplementedError("your turn")
