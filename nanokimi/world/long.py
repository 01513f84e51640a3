"""Long contexts: text, pictures and clips in which what is asked about lies far back.

Every function takes a `size`, the number of things that make the context long (words, scenes, pictures or chunks): data.longest finds the
largest that fits. A needle is one such thing among much that nobody asks about, at a depth of 0 (the beginning) to 1 (the end).
"""
import numpy as np

from . import content, dense, draw
from .problems import ALL, IN_SCENES, shown_in_clips, split_of_text
from .scenes import Thing, film, free_place, pictogram_size, sample_kinds
from .types import Clip, Problem

ANIMALS = [p.name for p in ALL if p.category == "animal"]
IN_CLIPS = [p.name for p in ALL if shown_in_clips(p.name)]
CHUNK, SIDE = 4, 32             # frames, pixels: a chunk of a long clip is four media tokens
MOST = 6                        # questions about one context
LETTERS = 10                    # of a word of filler: longer ones are left out, as one can take as many tokens as a fact


# ---- text ------------------------------------------------------------------------------------------------------------------------------

def code(rng, split):
    """(sentence, question, answer): `the code of the red fox is 47.` Every split has pairs of colour and animal of its own."""
    while True:
        who = f"{rng.choice(list(draw.COLOURS))} {rng.choice(ANIMALS)}"
        if split_of_text(who) == split:
            number = str(rng.integers(10, 100))
            return f"the code of the {who} is {number}.", f"what is the code of the {who}?", number


def scene(rng, split, number=None):
    """(sentence, question, answer): one or two things in words, as pre-training describes and asks them; `number` tells many apart."""
    while True:
        kinds = sample_kinds(rng, int(rng.integers(1, 3)), split, IN_SCENES)
        names = ", ".join(Thing(kind, colour, 0, 0, 0).name for colour, kind in kinds)
        if split_of_text(names) == split:
            which, where = ("a picture", "the picture") if number is None else (f"picture {number}", f"picture {number}")
            return f"{which} shows from left to right: {names}.", f"what is in {where}?", names


def hidden(rng, split, sentences, depths, words):
    """Encyclopedia text of `words` words with the sentences at these depths, each on a line of its own."""
    text, filler, lines, start = content.wiki(split), [], [], 0
    while len(filler) < words:
        filler += [word for word in text[rng.integers(len(text))].split() if len(word) <= LETTERS]
    for depth, sentence in sorted(zip(depths, sentences)):
        end = round(depth * words)
        lines += [" ".join(filler[start:end]), sentence]
        start = end
    return "\n".join(filter(None, [*lines, " ".join(filler[start:words])]))


def about_text(context, facts):
    """Problems from (sentence, question, answer)."""
    return [Problem("knowledge", "text", (context,), question, answer, verifier="caption" if "picture" in question else "exact")
            for _, question, answer in facts]


def text_needle(make):
    """problem(rng, split, depth, size) with one fact of this kind in `size` words."""
    def needle(rng, split, depth, size):
        fact = make(rng, split)
        return about_text(hidden(rng, split, [fact[0]], [depth], size), [fact])[0]
    return needle


def haystack_problems(rng, split, size):
    """Several codes and in half of the texts a scene, in `size` words: every one of them is asked for."""
    facts = list({fact[1]: fact for fact in (code(rng, split) for _ in range(int(rng.integers(1, MOST))))}.values())
    facts += [scene(rng, split)] if rng.random() < 0.5 else []
    return about_text(hidden(rng, split, [fact[0] for fact in facts], rng.random(len(facts)), size), facts)


def pages_problems(rng, split, size):
    """`size` numbered scenes in words, some of them asked about."""
    facts = [scene(rng, split, number) for number in range(1, size + 1)]
    context = "\n".join(sentence for sentence, _, _ in facts)
    return about_text(context, [facts[i] for i in rng.permutation(size)[:MOST]])


# ---- pictures and clips ------------------------------------------------------------------------------------------------------------------

def gallery_problems(rng, split, size):
    """`size` numbered small pictures of one thing each, some of them asked about. Training only."""
    shown = dense.album(rng, 1.0, size)
    context = [part for i, (picture, _) in enumerate(shown, 1) for part in (f"\npicture {i}: " if i > 1 else "picture 1: ", picture)]
    return [Problem("perception", "image", tuple(context), f"what is in picture {i + 1}?", shown[i][1].strip(" ."))
            for i in rng.permutation(size)[:MOST]]


def chunks(rng, split, names):
    """A clip of a chunk each for these pictograms, None for an empty one, on one background."""
    things = []
    for name in names:
        size = pictogram_size(rng, 16, 28, split)
        things.append([Thing(name, None, *free_place(rng, size, SIDE, SIDE, ()), size)] if name else [])
    stills = film(draw.background(rng, SIDE, SIDE), len(names), lambda number: things[number])
    return Clip(np.repeat(stills.frames, CHUNK, 0))


def clip_needle(rng, split, depth, size):
    """A clip of `size` chunks, empty but for one pictogram in one of them: two seconds of a long film."""
    name = IN_CLIPS[rng.integers(len(IN_CLIPS))]
    names = [None] * size
    names[round(depth * (size - 1))] = name
    return Problem("video", "video", (chunks(rng, split, names),), "what is this?", name)


def film_problems(rng, split, size):
    """A needle in a clip of `size` chunks, or a pictogram in every chunk: what comes after this one?"""
    if not 2 <= size <= len(IN_CLIPS) or rng.random() < 0.5:
        return [clip_needle(rng, split, rng.random(), size)]
    names = [IN_CLIPS[i] for i in rng.permutation(len(IN_CLIPS))[:size]]
    clip = chunks(rng, split, names)
    return [Problem("video", "video", (clip,), f"what comes after the {names[i]}?", names[i + 1]) for i in rng.permutation(size - 1)[:MOST]]


NEEDLES = {"scene": text_needle(scene), "code": text_needle(code), "clip": clip_needle}
