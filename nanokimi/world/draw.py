"""Drawing with numpy (Pillow only scales pictograms): backgrounds, eight shapes in eight colours, pictograms, handwritten digits.

A canvas is float32 (h, w, 3) in 0..255; `finish` turns it into the uint8 picture. What can be computed once (antialiased masks,
scaled pictograms) is cached, so drawing an object is two passes over its own pixels. All sizes and ranges here are ours.
"""
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from . import content

RGB = {"red": (225, 35, 35), "orange": (250, 130, 20), "yellow": (245, 220, 40), "green": (40, 160, 50),
       "cyan": (40, 205, 220), "blue": (35, 70, 225), "purple": (130, 45, 170), "pink": (255, 120, 190)}
COLOURS = {name: np.array(rgb, np.float32) for name, rgb in RGB.items()}
KINDS = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart")
STYLES = ("plain", "gradient", "noisy")
SUPERSAMPLE = 4         # a mask pixel is the mean of 4 x 4 yes/no samples
QUARTER_LIMIT = 32      # objects up to this size move in quarter pixels, larger ones in whole pixels (bounds the mask cache)


class Sprite(NamedTuple):
    """Something ready to be blended: canvas = canvas * keep + paint. Both (h, w, 3) float32."""
    keep: np.ndarray
    paint: np.ndarray


# ---- backgrounds

@lru_cache(maxsize=1)
def noise_field():
    """(512, 512, 3) float32 of fixed noise, std 1: half fine grain, half soft spots. Backgrounds cut pieces out of it."""
    rng = np.random.default_rng(0)
    fine, soft = rng.standard_normal((2, 512, 512, 3), dtype=np.float32)
    for axis in (0, 1):
        soft = sum(np.roll(soft, shift, axis) for shift in range(8))    # box blur, 8 px
    return ((fine + soft / soft.std()) / np.sqrt(2)).astype(np.float32)


def grey(rng, level=1.0):
    """A desaturated colour (3,): dark at level 0, of any lightness at 1. Its chroma stays so low that each of COLOURS stands out from it
    (tested)."""
    return rng.uniform(20, 45 + 190 * level) + rng.uniform(-12, 12, 3)


def background(rng, h, w, level=1.0):
    """A new canvas, float32 (h, w, 3): one dark colour at level 0, any of STYLES in any lightness at level 1 (the exam's). On a dark ground
    every thing is brighter than what is behind it, so that its form is a linear function of the pixels: where learning begins."""
    style = STYLES[rng.integers(len(STYLES))] if rng.random() < level else "plain"
    canvas = np.empty((h, w, 3), np.float32)
    canvas[:] = grey(rng, level)
    if style == "gradient":
        canvas += gradient(h, w, grey(rng, level) - canvas[0, 0], rng.uniform(0, 2 * np.pi))
    elif style == "noisy":
        assert max(h, w) <= 512, f"noisy backgrounds are at most 512 pixels a side, not {h} x {w}"
        y, x = rng.integers(0, 513 - h), rng.integers(0, 513 - w)
        canvas += noise_field()[y:y + h, x:x + w] * np.float32(rng.uniform(4, 14))
    return canvas


def gradient(h, w, change, angle):
    """(h, w, 3) float32: 0 at one corner, `change` (3,) at the opposite one, linear along `angle` (radians)."""
    x, y = np.cos(angle) * np.arange(w), np.sin(angle) * np.arange(h)
    x, y = x - x.min(), y - y.min()
    reach = x.max() + y.max() + 1e-6
    along_x = (x[:, None] * change / reach).astype(np.float32)              # (w, 3)
    return along_x + (y[:, None] * change / reach).astype(np.float32)[:, None]


def finish(canvas):
    """The picture: uint8 (h, w, 3)."""
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


# ---- shapes

def inside(kind, x, y):
    """Which of the points (x, y), in -1..1 with y pointing down, belong to the shape. Every kind touches its box on all
    four sides, so that box = centre +- size / 2. Fat forms: they must still be told apart at 8 pixels."""
    r2 = x * x + y * y
    if kind == "circle":
        return r2 <= 1
    if kind == "ring":
        return (r2 <= 1) & (r2 >= 0.5 ** 2)
    if kind == "square":
        return np.maximum(abs(x), abs(y)) <= 1
    if kind == "diamond":
        return abs(x) + abs(y) <= 1
    if kind == "triangle":
        return abs(x) <= (y + 1) / 2
    if kind == "cross":
        return np.minimum(abs(x), abs(y)) <= 0.34
    if kind == "heart":
        lobes = (abs(x) - 0.5) ** 2 + (y + 0.5) ** 2 <= 0.5 ** 2
        return lobes | ((y > -0.5) & (abs(x) + 0.75 * (y + 0.5) <= 1.1) & (abs(x) <= 1))
    assert kind == "star", f"kind {kind!r} is not one of {KINDS}"
    return in_star(x, y)


def in_star(x, y, inner=0.5):
    """Five points, one up; `inner` is the radius of the notches (a true pentagram has 0.38: too thin at 8 px)."""
    x, y = x / 1.05, (y - 0.1) / 1.1                                        # the five points fill the box
    turn = np.abs(np.mod(np.arctan2(x, -y) + np.pi / 5, 2 * np.pi / 5) - np.pi / 5)     # angle to the nearest point
    u, v = np.hypot(x, y) * np.cos(turn), np.hypot(x, y) * np.sin(turn)
    notch_u, notch_v = inner * np.cos(np.pi / 5), inner * np.sin(np.pi / 5)
    return (1 - u) * notch_v >= v * (1 - notch_u)                           # below the edge from point (1, 0) to the notch


@lru_cache(maxsize=4096)
def shape_sprite(kind, size, sub_x, sub_y):
    """Sprite of a shape `size` pixels across whose top left corner lies at (sub_x, sub_y) quarters of a pixel; paint is for white = 1."""
    ticks = (np.arange((size + 1) * SUPERSAMPLE) + 0.5) / SUPERSAMPLE
    x, y = 2 * (ticks - sub_x / 4) / size - 1, 2 * (ticks - sub_y / 4) / size - 1
    within = (abs(x) <= 1) & (abs(y) <= 1)[:, None]
    hits = inside(kind, x[None, :], y[:, None]) & within                    # (4 (size + 1), 4 (size + 1))
    alpha = hits.reshape(size + 1, SUPERSAMPLE, size + 1, SUPERSAMPLE).mean((1, 3))
    return make_sprite(np.repeat(alpha[..., None], 3, 2), alpha)


def make_sprite(paint, alpha):
    """Sprite from premultiplied colours (h, w, 3) and alpha (h, w) in 0..1."""
    keep = np.repeat(1 - alpha[..., None], 3, 2)
    return Sprite(np.ascontiguousarray(keep, np.float32), np.ascontiguousarray(paint, np.float32))


def shade(colour, rng=None):
    """The named colour, float32 (3,), with a little jitter if rng is given."""
    jitter = 0 if rng is None else rng.uniform(-12, 12, 3)
    return (COLOURS[colour] + jitter).clip(0, 255).astype(np.float32)


def draw_shape(canvas, kind, colour, cx, cy, size, rng=None):
    """Draws in place, antialiased; (cx, cy) is the centre in pixels (0, 0 = the corner of the first pixel), size the longest side.
    colour: a name in COLOURS; rng jitters it."""
    size = max(3, round(size))
    (left, sub_x), (top, sub_y) = corner(cx, size), corner(cy, size)
    blend(canvas, shape_sprite(kind, size, sub_x, sub_y), left, top, shade(colour, rng))


def corner(centre, size):
    """Whole pixel and quarters (0..3) of the low edge of an object."""
    low = centre - size / 2
    return divmod(round(4 * low), 4) if size <= QUARTER_LIMIT else (round(low), 0)


def blend(canvas, sprite, left, top, rgb=None):
    """Puts a sprite at (left, top), cut off at the edges; with rgb the sprite's paint is tinted."""
    assert canvas.dtype == np.float32, f"draw on a float32 canvas, not {canvas.dtype} (see background and finish)"
    h, w = canvas.shape[:2]
    high, wide = sprite.keep.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + wide, w), min(top + high, h)
    if x0 >= x1 or y0 >= y1:
        return
    part = np.s_[y0 - top:y1 - top, x0 - left:x1 - left]
    region = canvas[y0:y1, x0:x1]
    region *= sprite.keep[part]
    region += sprite.paint[part] if rgb is None else sprite.paint[part] * rgb


# ---- pictograms and handwriting

@lru_cache(maxsize=2048)
def pictogram_sprite(name, size):
    """Sprite of a pictogram whose longest side is `size` pixels."""
    rgba = content.render(name, size)                                       # (size, size, 4) uint8
    alpha = rgba[..., 3] / 255
    return make_sprite(rgba[..., :3] * alpha[..., None], alpha)


@lru_cache(maxsize=2048)
def pictogram_bounds(name, size):
    """What is drawn of a pictogram within its sprite: left, top, right, bottom edges in pixels. Few drawings fill their square."""
    drawn = pictogram_sprite(name, size).keep[..., 0] < 0.8           # thin lines, too
    rows, columns = (np.flatnonzero(drawn.any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def pictogram_corner(cx, cy, size):
    """Left and top of its sprite, snapped to whole pixels."""
    return round(cx - size / 2), round(cy - size / 2)


def pictogram_edges(name, cx, cy, size):
    """Left, top, right, bottom of what draw_pictogram draws, in pixels."""
    (left, top), (x0, y0, x1, y1) = pictogram_corner(cx, cy, size), pictogram_bounds(name, size)
    return left + x0, top + y0, left + x1, top + y1


def draw_pictogram(canvas, name, cx, cy, size):
    """Draws a pictogram in place; size = longest side, whole pixels."""
    blend(canvas, pictogram_sprite(name, size), *pictogram_corner(cx, cy, size))


@lru_cache(maxsize=16)
def enlarge(scale):
    """(8 * scale, 8) float32: linear interpolation from 8 samples to 8 * scale, as a matrix."""
    at = ((np.arange(8 * scale) + 0.5) / scale - 0.5).clip(0, 7)
    return np.maximum(0, 1 - abs(at[:, None] - np.arange(8))).astype(np.float32)


def draw_digits(canvas, digits, x, y, scale, ink):
    """Writes handwritten digits (each (8, 8), 0..16) from left to right, top left corner (x, y), each 8 * scale pixels wide and high.
    ink: RGB."""
    grow = enlarge(scale)
    alpha = np.concatenate([grow @ (digit / np.float32(16)) @ grow.T for digit in digits], 1)   # (8 scale, 8 scale n)
    blend(canvas, make_sprite(np.repeat(alpha[..., None], 3, 2), alpha), round(x), round(y), np.asarray(ink, np.float32))


def writing(rng, digits, room=None, level=1.0):
    """A picture with a line of handwriting, 16 or 24 pixels high: uint8 (h, w, 3) of 40 to 96 pixels a side, or up to `room` times the line."""
    scale = 2 if len(digits) == 4 or rng.random() < 0.5 else 3
    wide, high = 8 * scale * len(digits), 8 * scale
    sides = [(max(40, side), 96) if room is None else (side, int(room * side)) for side in (wide, high)]
    width, height = (int(rng.integers(least, most + 1)) for least, most in sides)
    canvas = background(rng, height, width, level)
    x, y = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - high + 1))
    dark = canvas[y:y + high, x:x + wide].mean() > 127
    draw_digits(canvas, digits, x, y, scale, rng.uniform(0, 30, 3) if dark else rng.uniform(225, 255, 3))
    return finish(canvas)
