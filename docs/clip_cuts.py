"""Names in clips with a trained encoder that is operated on: every frame attends to itself only, or the time table is zero.

    python docs/clip_cuts.py runs/s0 [runs/s1 ...]          val split, 400 problems a row, answered at once by the base model

Names that training clips show, and names that only training pictures show (nanokimi/world/problems.py: shown_in_clips).
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
from nanokimi.world import problems as world                             # noqa: E402

NUMBER = 400


def right(engine, problems):
    """Whether each problem is answered rightly, (N,) of 0 and 1."""
    return np.array([evaluate.correct(p, a) for p, a in zip(problems, evaluate.ask_document(engine, problems))], float)


def operated(engine, problems):
    """{cut: (N,)}: as it is, frames alone, without the time table."""
    encoder = engine.model.vision
    found, kept = {"as it is": right(engine, problems)}, encoder.embed.time.clone()
    alone = lambda module, args: (args[0], args[1], [(n * t, 1, length // t) for n, t, length in args[2]])     # n clips of t frames -> n t pictures
    hooks = [layer.attn.register_forward_pre_hook(alone) for layer in encoder.layers]
    found["frames alone"] = right(engine, problems)
    for hook in hooks:
        hook.remove()
    encoder.embed.time.zero_()
    found["no time"] = right(engine, problems)
    encoder.embed.time.copy_(kept)
    return found


def main():
    parser = argparse.ArgumentParser(description="Names in clips with a trained encoder that is operated on.")
    parser.add_argument("runs", nargs="+", type=Path)
    torch.set_num_threads(plan.cores())
    for run in parser.parse_args().runs:
        engine = engine_of(run, load(run / "pretrain", "cpu"))
        for shown in (True, False):
            problems = [world.clip_naming_problems(np.random.default_rng([5, shown, i]), "val", shown=shown)[0] for i in range(NUMBER)]
            found = operated(engine, problems)
            print(f"{run} · names that training clips {'show' if shown else 'never show'}: " + ", ".join(
                f"{cut} {hits.mean():.3f}" for cut, hits in found.items()), flush=True)
            for cut in ("frames alone", "no time"):
                change = found[cut] - found["as it is"]
                print(f"    {cut} - as it is: {change.mean():+.3f} +- {1.96 * change.std(ddof=1) / NUMBER ** 0.5:.3f}", flush=True)


if __name__ == "__main__":
    main()
