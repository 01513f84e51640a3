# made by make.py from source/; write your code where NotImplementedError is raised
"""Exercise 8: QK-Clip for Multi-head Latent Attention.

Paper: K2 (arXiv 2507.20534), 2.1 and algorithm 1. In nanokimi: nanokimi/muon.py, `qk_clip`, `clip_heads`.

Under Muon some heads' logits can grow without end. After the optimizer's step, each head whose largest logit in the step's forward was above
tau has its weights scaled, so that the same inputs would give tau, but for what the step itself changed. The forward pass is never touched.

Predict first:
1. A logit is q_nope . k_nope + q_rope . k_rope. Which of the four may be scaled for one head without changing the others?
2. If q and k both take the square root of gamma, what does the product take? What does q_rope have to take, and why?
3. Would it be right to scale a head whose largest logit is -5?
"""
import torch


def qk_clip(q_b: torch.Tensor, kv_b: torch.Tensor, max_logits: torch.Tensor, tau: float, nope: int) -> tuple[torch.Tensor, torch.Tensor]:
    """q_b (H, nope + rope, q_lora), kv_b (H, nope + v, kv_lora), max_logits (H,) -> (new q_b, new kv_b); the tensors given stay as they are.

    In words: gamma of a head is tau / its largest logit if that is above tau, else 1. A head's logits become gamma times what they were: its
    rows of q_nope and of k_nope take sqrt(gamma) each; q_rope takes gamma, because k_rope is shared by all heads and must stay. The rows of
    kv_b that make values stay, too.
    """
    raise NotImplementedError("your turn")
