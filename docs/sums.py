"""Which sums of two numbers a chat model gets right, by their digits. Numbers drawn evenly have mostly three; so half of the sums in chats are short.

    python docs/sums.py RUN... [--stage rl] [--number 60]
"""
import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from nanokimi import evaluate, plan                                      # noqa: E402
from nanokimi.engine import engine_of                                    # noqa: E402
from nanokimi.model import load                                          # noqa: E402
from nanokimi.rollout import content_of                                  # noqa: E402
from nanokimi.world.types import Problem                                 # noqa: E402


def sums(rng, digits, number):
    """Problems x + y with so many digits in x and in y, and at most 999 as their sum."""
    out = []
    while len(out) < number:
        x, y = (int(rng.integers(10 ** (n - 1), 10 ** n)) for n in digits)
        if x + y < 1000:
            out.append(Problem("reasoning", "text", (), f"what is {x} + {y}?", str(x + y), ""))
    return out


def main():
    """Prints six lines a run."""
    parser = argparse.ArgumentParser(description="Sums of two numbers, by their digits.")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--stage", default="rl")
    parser.add_argument("--number", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(plan.cores())
    for run in args.runs:
        engine, rng = engine_of(run, load(run / args.stage)), np.random.default_rng(0)
        for digits in ((1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)):
            problems = sums(rng, digits, args.number)
            right = np.mean([content_of(response) == p.answer for p, response in zip(problems, evaluate.ask_chat(engine, problems))])
            print(f"{run}: {digits[0]} and {digits[1]} digits: {right:.2f} of {args.number}")


if __name__ == "__main__":
    main()
