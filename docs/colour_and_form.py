"""Does the language model say what the encoder sees? Forms after a colour word, for pairs of colour and form that training shows or never shows.

    python docs/colour_and_form.py RUN [--number 300]

A picture (val split) shows one thing. The model reads "what is in the picture? answer: red" and is asked for the next word, once after the
true colour and once after another one. Where it names the form of an unseen pair only after a wrong colour, it saw the form and did not
believe that the two words go together.
"""
import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from nanokimi import data                                                # noqa: E402
from nanokimi.model import load                                          # noqa: E402
from nanokimi.report import wilson_interval                              # noqa: E402
from nanokimi.tokenizer import Rendered, Tokenizer                       # noqa: E402
from nanokimi.world import draw                                          # noqa: E402
from nanokimi.world.scenes import HELD_OUT, PAIRS, sample_scene          # noqa: E402

UNSEEN = HELD_OUT["val"] | HELD_OUT["test"]
SEEN = [pair for pair in PAIRS if pair not in UNSEEN]


def other_colour(rng, colour, kind):
    """Another colour, one that training shows with this form."""
    return str(rng.choice([c for c, k in SEEN if k == kind and c != colour]))


@torch.inference_mode()
def says_form(model, tokenizer, rng, pair, said):
    """Whether the likeliest form after the colour `said` is the one in the picture."""
    picture = sample_scene(rng, "val", kinds=[pair]).picture(rng)
    parts = [data.prepared(picture, model.config.vision), f"\nquestion: what is in the picture?\nanswer: {said}"]
    doc = tokenizer.render_parts(Rendered(), parts)
    logits = model.language.head(model(data.to_batch([[doc]], len(doc.ids), tokenizer.pad, tokenizer.patch))[0, -1])
    forms = [tokenizer.encode(f" {kind}")[0] for kind in draw.KINDS]
    return draw.KINDS[int(logits[forms].argmax())] == pair[1]


def main():
    """Prints four accuracies with 95 % intervals."""
    parser = argparse.ArgumentParser(description="Forms after colour words, pairs that training shows and pairs that it never shows.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--number", type=int, default=300, help="pictures a line")
    args = parser.parse_args()
    model = load(args.run / "pretrain")
    tokenizer = Tokenizer.load(args.run / "tokenizer", model.config.vision.patch)
    for name, pairs in (("a pair that training shows", SEEN), ("a pair that training never shows", sorted(HELD_OUT["val"]))):
        for which in ("its colour", "another colour"):
            rng, hits = np.random.default_rng(0), 0
            for _ in range(args.number):
                pair = pairs[rng.integers(len(pairs))]
                hits += says_form(model, tokenizer, rng, pair, pair[0] if which == "its colour" else other_colour(rng, *pair))
            low, high = wilson_interval(hits, args.number)
            print(f"{name}, after {which}: form right {hits / args.number:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
