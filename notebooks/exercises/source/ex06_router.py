"""Exercise 6: the router, its selection bias, and how the bias keeps the experts busy.

Paper: DeepSeek-V3 (arXiv 2412.19437), 2.1.2; Moonlight (arXiv 2502.16982), appendix C. In nanokimi: nanokimi/language.py, `Router` and
`MoE.update_bias`.

Each token goes to k experts. Who is chosen depends on a bias that only balances the load; how much an expert counts does not.

Predict first:
1. The same number is added to all biases. What changes in the choice, and what in the weights?
2. What would the model learn if the bias took part in the weights?
3. Loads 6, 2, 2, 2: without the mean taken away, how does the mean of the biases move from step to step? Does that harm the choice?
"""
import torch


def route(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, k: int, scaling: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens x (N, d), router weight (E, d), selection bias (E,) -> (chosen experts (N, k), their weights (N, k)).

    In words: a score is the sigmoid of the product of token and expert. Chosen are the k experts with the largest score plus bias. The
    weights are the scores alone, divided by their sum over the chosen ones, times scaling. The order of the k is free; the bias gets no gradient.
    """
    # BEGIN SOLUTION
    scores = (x @ weight.T).sigmoid()                                           # (N, E)
    chosen = (scores + bias).topk(k).indices
    weights = scores.gather(1, chosen)
    return chosen, weights / weights.sum(-1, keepdim=True) * scaling
    # END SOLUTION


def update_bias(bias: torch.Tensor, load: torch.Tensor, rate: float) -> torch.Tensor:
    """One balancing step: bias (E,), load (E,) tokens that went to each expert -> new bias (E,).

    In words: the error of an expert is the mean load minus its load. Its bias grows by rate times (the sign of its error minus the mean of
    all signs), so that the biases always sum to the same. The bias given stays as it is.
    """
    # BEGIN SOLUTION
    sign = (load.float().mean() - load.float()).sign()
    return bias + rate * (sign - sign.mean())
    # END SOLUTION
