"""The exam: what test problems look like, written down and hashed before the first run whose numbers are published.

`fingerprint` covers the first problems of every row (questions, answers, and coarsely what is seen) and the verifiers; a test holds it. Whoever
changes anything here, or in what draws and generates, bumps VERSION and runs every row again; what changes no problem and no score (words in
verify.py) changes the hash alone.
Only a row that is added leaves the others as they are: each is drawn from a seed of its own.
Problems depend on (VERSION, row, split, number) only, never on a training seed.
"""
import hashlib
import inspect
import zlib
from dataclasses import replace
from functools import lru_cache

import numpy as np

from . import problems as world, tools, verify
from .types import Clip, Image

VERSION = 6


def _pick(problems, rng, wanted):
    """One problem whose question begins with one of the wanted words, or None."""
    chosen = [p for p in problems if p.question.startswith(wanted)]
    return chosen[rng.integers(len(chosen))] if chosen else None


def _from_scene(wanted, most=6, modality="image"):
    """A maker of scene problems that asks only what is wanted; draws scenes until one allows it."""
    def make(rng, split):
        while True:
            problem = _pick(world.scene_problems(rng, split, count=int(rng.integers(1, most + 1)), modality=modality), rng, wanted)
            if problem:
                return problem
    return make


def _unshown_picture(rng, split):
    """A picture of a name that no training clip shows: the other half of the N+1 ratio."""
    names = [p.name for p in world.ALL if not world.shown_in_clips(p.name)]
    return world.naming_problems(rng, split, names[rng.integers(len(names))])[0]


def _flag(rng, split):
    return world.naming_problems(rng, split, world.COUNTRIES[rng.integers(len(world.COUNTRIES))].name)[0]


def _chat(modality, most):
    """A maker of questions about a scene with a chain of thought: colours, neighbours, and counts of which each is equally frequent."""
    def make(rng, split):
        asked = ("how many", "what colour", "from left to right, what")[rng.integers(3)]
        if asked == "how many":
            return world.counting_problems(rng, split, modality=modality, most=most)[0]
        return _from_scene((asked,), most, modality)(rng, split)
    return make


def _chat_picture(rng, split):
    """Pictures in chat: what _chat asks, and names."""
    return world.naming_problems(rng, split)[0] if rng.random() < 0.25 else _chat("image", 4)(rng, split)


ROWS = {
    "caption": _from_scene(("what is in",), most=4),
    "count": lambda rng, split: world.counting_problems(rng, split)[0],
    "name": lambda rng, split: world.naming_problems(rng, split)[0],
    "direction": lambda rng, split: world.direction_problems(rng, split)[0],
    "appear": lambda rng, split: world.appear_problems(rng, split)[0],
    "order": lambda rng, split: world.order_problems(rng, split)[rng.integers(2)],
    "ground": _from_scene(("where is",)),
    "point": _from_scene(("point to",)),
    "program": lambda rng, split: world.program_problems(rng, split)[0],
    "picture_program": lambda rng, split: world.picture_program_problems(rng, split)[0],
    "clip_program": lambda rng, split: world.clip_program_problems(rng, split)[0],
    "ocr": lambda rng, split: world.ocr_problems(rng, split)[0],
    "clip_name_unshown": lambda rng, split: world.clip_naming_problems(rng, split, shown=False)[0],
    "picture_name_unshown": _unshown_picture,
    "flag_name": _flag,
    "capital": lambda rng, split: world.capital_problems(rng, split)[0],
    "flag_capital": lambda rng, split: world.flag_capital_problems(rng, split)[0],
    "arithmetic": lambda rng, split: world.arithmetic_problems(rng, split)[0],
    "scene_text": _chat("text", 6),
    "tool_text": lambda rng, split: tools.tool_problems(rng, split)[0],
    "chat_picture": _chat_picture,
    "tool_picture": lambda rng, split: tools.picture_tool_problems(rng, split)[0],
}
TOOL_ROWS = ("tool_text", "tool_picture")                                # asked with Python declared


@lru_cache(maxsize=None)
def exam(row, split, number):
    """The first `number` problems of a row, drawn once: every caller gets the same list."""
    seed = zlib.crc32(row.encode())
    return [ROWS[row](np.random.default_rng([VERSION, seed, {"train": 0, "val": 1, "test": 2}[split], i]), split) for i in range(number)]


def fingerprint(split="test", number=20):
    """SHA-256 of the exam: prompts, answers, the verifiers' code, and the media as 8 x 8 thumbnails (rasterisers may differ in detail)."""
    digest = hashlib.sha256(f"version {VERSION} {inspect.getsource(verify)}".encode())
    for row in ROWS:
        for problem in exam(row, split, number):
            for part in problem.context:
                pixels = part.pixels[None] if isinstance(part, Image) else part.frames if isinstance(part, Clip) else None
                seen = part if pixels is None else f"{pixels.shape} {thumbnails(pixels)}"
                digest.update(seen.encode())
            digest.update(f"{problem.question}|{problem.answer}|{problem.verifier}".encode())
    return digest.hexdigest()


def thumbnails(pixels):
    """uint8 (t, H, W, 3) -> 8 x 8 cells a frame in 8 grey levels, as text."""
    rows, columns = (np.linspace(0, side, 9).astype(int) for side in pixels.shape[1:3])
    grey = pixels.mean(-1)
    cells = np.add.reduceat(np.add.reduceat(grey, rows[:-1], 1), columns[:-1], 2) / np.outer(np.diff(rows), np.diff(columns))
    return (cells / 32).round().astype(int).tolist()


# ---- controls: what the model can do without really looking ----------------------------------------------------------------------------

def blind(problems):
    """Every problem with the media of another one."""
    assert len(problems) > 1, "one problem has no other one whose picture it could be given"
    half = len(problems) // 2
    other = lambda i: problems[(i + half) % len(problems)]
    pixels = lambda p: {"img": p.meta["img"]} if "img" in p.meta else {}
    return [replace(p, context=other(i).context, meta=p.meta | pixels(other(i))) for i, p in enumerate(problems)]


def one_frame(problems):
    """Clips cut down to their middle frame."""
    return [replace(p, context=tuple(Clip(part.frames[len(part.frames) // 2:][:1], part.fps) for part in p.context)) for p in problems]


def shuffled(problems):
    """Clips with their frames in random order."""
    rng = np.random.default_rng(VERSION)
    mixed = lambda clip: Clip(clip.frames[rng.permutation(len(clip.frames))], clip.fps)
    return [replace(p, context=tuple(map(mixed, p.context))) for p in problems]

