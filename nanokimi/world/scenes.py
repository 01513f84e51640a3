"""Scenes: a few things with colour, kind, size and place; drawn as a picture, moved as a clip, or put into words.

Splits are by content: some colour x kind pairs are never in a training scene, some pictogram sizes never in a training picture. (The two
words of such a pair do meet in training, where a caption reads another colour than it learns to say: data.misled.)
"""
from dataclasses import dataclass, replace

import numpy as np

from . import draw
from .types import Clip, Image

PAIRS = [(colour, kind) for colour in draw.COLOURS for kind in draw.KINDS]
_ORDER = np.random.default_rng(64).permutation(len(PAIRS))           # fixed for ever: part of the exam
HELD_OUT = {"val": {PAIRS[i] for i in _ORDER[:6]}, "test": {PAIRS[i] for i in _ORDER[6:12]}}
MIN_SIZE = 8                                                          # pixels; smaller things are the tool problems' business
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1), "down right": (1, 1), "up left": (-1, -1),
              "down left": (-1, 1), "up right": (1, -1)}


@dataclass(frozen=True)
class Thing:
    """One object. colour is None for a pictogram, whose kind is its name. cx, cy, size in pixels."""
    kind: str
    colour: str | None
    cx: float
    cy: float
    size: float

    @property
    def name(self):
        return f"{self.colour} {self.kind}" if self.colour else self.kind

    def centre(self, width, height):
        """x y in 0..99 of the picture's width and height."""
        return int(self.cx * 100 / width), int(self.cy * 100 / height)

    def edges(self):
        """Left, top, right, bottom of what is drawn, in pixels."""
        if self.colour is None:
            return draw.pictogram_edges(self.kind, self.cx, self.cy, self.size)
        half = self.size / 2
        return self.cx - half, self.cy - half, self.cx + half, self.cy + half

    def box(self, width, height):
        """x0 y0 x1 y1 in 0..99 of the picture's width and height."""
        return tuple(int(np.clip(100 * edge / side, 0, 99)) for edge, side in zip(self.edges(), (width, height) * 2))


@dataclass(frozen=True)
class Scene:
    """Things on a canvas, ordered from left to right."""
    width: int
    height: int
    things: tuple

    @property
    def names(self):
        return ", ".join(thing.name for thing in self.things)

    @property
    def caption(self):
        return f"from left to right: {self.names}."

    def picture(self, rng, level=1.0):
        """Draw it on a background chosen by rng for this level."""
        return Image(paint(self.things, draw.background(rng, self.height, self.width, level), rng))


def paint(things, canvas, rng=None):
    """Draw things onto a copy of the canvas (float32); the finished picture is uint8 (H, W, 3)."""
    canvas = canvas.copy()
    for thing in things:
        if thing.colour:
            draw.draw_shape(canvas, thing.kind, thing.colour, thing.cx, thing.cy, thing.size, rng)
        else:
            draw.draw_pictogram(canvas, thing.kind, thing.cx, thing.cy, thing.size)
    return draw.finish(canvas)


def pairs(split):
    """Colour x kind pairs that a scene of this split may show; val and test add their own unseen ones."""
    unseen = HELD_OUT["val"] | HELD_OUT["test"]
    return [pair for pair in PAIRS if pair not in unseen or pair in HELD_OUT.get(split, ())]


def pictogram_size(rng, low, high, split):
    """A side in pixels; sizes with s % 5 == 4 are for test only, s % 5 == 2 for val only."""
    keep = {"train": (0, 1, 3), "val": (2,), "test": (4,)}[split]
    sizes = [s for s in range(int(low), int(high) + 1) if s % 5 in keep]
    assert sizes, f"no {split} pictogram size between {low} and {high} pixels"
    return int(rng.choice(sizes))


def canvas_size(rng, low, high, split):
    """Width and height in pixels, each on its own: non-square pictures are the rule. Training sees more of the small ones, which are
    cheaper; val and test are uniform."""
    u = rng.random(2) ** (3.0 if split == "train" else 1.0)
    width, height = (low + u * (high + 1 - low)).astype(int)
    return int(width), int(height)


def free_place(rng, size, width, height, things):
    """A centre that keeps most of every thing visible (some overlap is wanted) and left-to-right unambiguous; None if none is found."""
    for _ in range(12):
        cx, cy = rng.uniform(size / 2, width - size / 2), rng.uniform(size / 2, height - size / 2)
        if all(abs(cx - t.cx) >= 2 and max(abs(cx - t.cx), abs(cy - t.cy)) >= 0.42 * (size + t.size) for t in things):
            return cx, cy
    return None


def place(rng, kinds, width, height, split="train", low=0.08, high=0.40):
    """Put (colour, kind) pairs on a canvas without hiding any: big sizes are tried first, smaller ones where it gets crowded."""
    side, things = min(width, height), []
    for colour, kind in kinds:
        floor = max(MIN_SIZE, low * side) if colour else 14
        ceiling, spot = max(floor + 5, high * side), None
        while spot is None:
            size = rng.uniform(floor, ceiling) if colour else pictogram_size(rng, floor, ceiling, split)
            spot = free_place(rng, size, width, height, things)
            if spot is None and ceiling == floor + 5:
                return None                                              # too crowded: the caller takes a larger canvas
            ceiling = max(floor + 5, 0.8 * ceiling)
        things.append(Thing(kind, colour, *spot, size))
    return Scene(width, height, tuple(sorted(things, key=lambda thing: thing.cx)))


def sample_kinds(rng, count, split, pictograms=()):
    """(colour, kind) pairs; one in five things is a pictogram where names are given."""
    choices = pairs(split)
    pick = lambda: (None, str(rng.choice(pictograms))) if len(pictograms) and rng.random() < 0.2 else choices[rng.integers(len(choices))]
    return [pick() for _ in range(count)]


def sample_scene(rng, split="train", kinds=None, sides=(32, 96)):
    """A random scene of 1 to 6 things, or of the given kinds; the canvas is drawn again (larger) if they do not fit."""
    kinds = kinds or sample_kinds(rng, int(rng.integers(1, 7)), split)
    low, high = sides
    while True:
        scene = place(rng, kinds, *canvas_size(rng, low, high, split), split)
        if scene:
            return scene
        low = min(high, low + 8)


def travel(rng, direction, width, height, size, frames):
    """Centres (frames, 2) of a thing that moves straight and stays inside; 1 to 4 pixels a frame, often less than a patch."""
    step = np.array(DIRECTIONS[direction], float)
    room = np.array([width - size, height - size]) / max(1, frames - 1)
    speed = rng.uniform(1.0, max(1.01, min(4.0, room[step != 0].min())))
    distance = step * speed * (frames - 1)
    low = np.array([size / 2, size / 2]) + np.maximum(0, -distance)
    high = np.array([width - size / 2, height - size / 2]) - np.maximum(0, distance)
    start = rng.uniform(low, np.maximum(low, high))
    return start + np.arange(frames)[:, None] * step * speed


def film(background, frames, present):
    """A clip from `present(frame) -> things`."""
    return Clip(np.stack([paint(present(frame), background) for frame in range(frames)]))


def moved(thing, centre):
    """The same thing somewhere else."""
    return replace(thing, cx=float(centre[0]), cy=float(centre[1]))

