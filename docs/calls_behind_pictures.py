"""Does a call of the tool survive what stands before it? Share of problems whose true call is the first choice in every token, by what is shown.

    python docs/calls_behind_pictures.py RUN... [--stage sft] [--number 60]

The tool problems of the val exam with their true thought and call, teacher-forced. The cold start showed no picture at all; a call may end in
what the picture seems to show, the larger it is the likelier. Below each line, where most calls first went wrong: what was due, and what
came instead. Before them, how long the embeddings of chat's tokens are after pre-training, which never shows them.
"""
import argparse
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image as Pillow

sys.path.insert(0, str(Path(__file__).parent.parent))
from nanokimi import data, plan                                          # noqa: E402
from nanokimi.model import NO_LOSS, load                                 # noqa: E402
from nanokimi.rollout import question_content                            # noqa: E402
from nanokimi.tokenizer import Tokenizer                                 # noqa: E402
from nanokimi.world import exam                                          # noqa: E402
from nanokimi.world.types import Image                                   # noqa: E402


def smaller(pixels, share):
    """uint8 (H, W, 3) resized to `share` of its sides."""
    height, width, _ = pixels.shape
    return np.asarray(Pillow.fromarray(pixels).resize((int(width * share), int(height * share))))


SHOWN = {"no picture": None, "the picture at an eighth": lambda x: smaller(x, 1 / 8), "at a quarter": lambda x: smaller(x, 1 / 4), "as it is": lambda x: x,
         "grey instead": lambda x: np.full_like(x, 128),
         "noise instead": lambda x: np.random.default_rng(0).integers(0, 256, x.shape, dtype=np.uint8)}


def true_call(tokenizer, vision, problem, change):
    """(Rendered, media tokens): the chat up to the end of the call, the picture changed or left out."""
    context = () if change is None else (Image(change(problem.context[0].pixels)),)
    (user, call, *_), _ = data.chat_messages(replace(problem, context=()), np.random.default_rng(0))
    if context:
        user = user | {"content": question_content(replace(problem, context=context), vision)}
    doc = tokenizer.render_chat([user, call], tools=[data.PYTHON_TOOL], thinking=True)
    return doc, doc.ids.count(tokenizer.media_pad)


def first_mistake(model, tokenizer, doc):
    """(token that was due, token that came instead) of the first one that is not the first choice; None if all are."""
    batch = data.to_batch([[doc]], len(doc.ids), tokenizer.pad, tokenizer.patch)
    targets = batch.targets[0]
    where = (targets != NO_LOSS).nonzero()[:, 0]
    best = model.language.head(model(batch)[0, where]).argmax(-1)
    wrong = (best != targets[where]).nonzero()[:, 0]
    return tuple(tokenizer.decode([int(x[wrong[0]])]) for x in (targets[where], best)) if len(wrong) else None


def embedding_lengths(run, tokenizer):
    """Median norms after pre-training: (of the tokens of chat, of all)."""
    norms = load(run / "pretrain").language.embed.weight.norm(dim=1)     # (V,)
    return norms[tokenizer.chat_ids].median().item(), norms.median().item()


@torch.inference_mode()
def main():
    """Prints a table a run."""
    parser = argparse.ArgumentParser(description="True tool calls behind pictures of several sizes.")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--stage", default="sft")
    parser.add_argument("--number", type=int, default=60, help="problems a line")
    args = parser.parse_args()
    torch.set_num_threads(plan.cores())
    problems = exam.exam("tool_picture", "val", args.number)
    for run in args.runs:
        model = load(run / args.stage)
        tokenizer = Tokenizer.load(run / "tokenizer", model.config.vision.patch)
        print("{}: embeddings of chat's tokens {:.2f}, of all {:.2f}".format(run, *embedding_lengths(run, tokenizer)))
        for name, change in SHOWN.items():
            docs, media = zip(*(true_call(tokenizer, model.config.vision, problem, change) for problem in problems))
            mistakes = [first_mistake(model, tokenizer, doc) for doc in docs]
            print(f"{run}: {name} ({np.mean(media):.0f} media tokens): {np.mean([m is None for m in mistakes]):.2f} of {len(problems)} calls right")
            for (due, came), n in Counter(m for m in mistakes if m).most_common(2):
                print(f"    {n} x {came!r} instead of {due!r}")


if __name__ == "__main__":
    main()
