# made by make.py from source/; write your code where NotImplementedError is raised
"""Exercise 9: the surrogate loss of k1.5.

Paper: Kimi k1.5 (arXiv 2501.12599), 2.3.2 (online policy mirror descent, Eq. 2 and 3). In nanokimi: nanokimi/policy.py, `k15`, `log_partition`.

The best policy near the one that sampled is pi exp(r / tau) / Z. Taking logarithms gives an equation that must hold for every response; its
squared error is the loss. It uses responses that were sampled before, and learns from bad ones as well as from good ones.

Predict first:
1. All responses to a problem got the same reward. What is the gradient at the first step, where both policies are equal?
2. What is tau log Z for very large tau, and what for tau near 0?
3. A response of 10 tokens and one of 1000 have the same reward. Which has the larger log-ratio after one step, and what does the square do?
"""
import math

import torch


def tau_log_z(reward: torch.Tensor, tau: float) -> torch.Tensor:
    """Rewards (k,) of the responses to one problem -> tau log Z, a number, estimated from these samples.

    In words: tau times the logarithm of the mean of exp(r / tau). It must not overflow where tau is small.
    """
    raise NotImplementedError("your turn")


def k15_loss(new: torch.Tensor, old: torch.Tensor, owner: torch.Tensor, reward: torch.Tensor, tau: float) -> torch.Tensor:
    """The loss of the k responses to one problem, with the mean reward in the place of tau log Z, to be minimised: a number.

    new (N,) log-probabilities of all responses' tokens under the policy that learns, old (N,) the same when they were sampled, owner (N,) the
    response that a token belongs to, 0 .. k-1, reward (k,). All but owner have one dtype, which need not be float32.
    In words: the log-ratio of a response is the sum of (new - old) over its tokens, not their mean. The error of a response is its reward
    minus the mean reward of all k minus tau times its log-ratio. The loss is the mean over responses of the squared errors, divided by
    2 tau: then its gradient is Eq. 3 with the sign turned.
    """
    raise NotImplementedError("your turn")
