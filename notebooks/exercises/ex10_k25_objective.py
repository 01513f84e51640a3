# made by make.py from source/; write your code where NotImplementedError is raised
"""Exercise 10: the objective of K2.5.

Paper: Kimi K2.5 (arXiv 2602.02276), 4.4.2, Eq. 1. In nanokimi: nanokimi/policy.py, `k25`.

Responses are often sampled by weights that are some steps old. Each token's ratio of probabilities, new over old, weighs its advantage; tokens
whose ratio left the window get no push in either direction, but a squared log-ratio pulls every token back.

Predict first:
1. A token's ratio is 3, the window ends at 2, its advantage is negative. What would PPO do with it, and what does K2.5 do?
2. Which tokens have a gradient where all rewards are equal?
3. A wrong response of 100 tokens and one of 10: how much more does each token of the short one weigh here? And with a mean per response?
"""
import torch


def advantage(reward: torch.Tensor) -> torch.Tensor:
    """Rewards (k,) of the responses to one problem -> advantages (k,).

    In words: the reward minus the mean reward of the group. It is not divided by the standard deviation.
    """
    raise NotImplementedError("your turn")


def k25_loss(new: torch.Tensor, old: torch.Tensor, owner: torch.Tensor, advantages: torch.Tensor, tokens: int,
             tau: float = 0.05, window: tuple[float, float] = (0.5, 2.0)) -> torch.Tensor:
    """The loss of a micro-batch, to be minimised: a number.

    new (N,) log-probabilities of sampled tokens under the policy that learns, old (N,) as recorded when they were sampled, owner (N,) the
    response of each token, advantages (R,) by response, tokens: how many there are in the FULL batch, of which these N may be a part.
    In words: the ratio of a token is exp(new - old). Its gain is the ratio, clamped to the window, times the advantage of its response,
    minus tau times the squared log-ratio, which is not clamped. The loss is minus the sum of all gains, divided by `tokens`.
    """
    raise NotImplementedError("your turn")
