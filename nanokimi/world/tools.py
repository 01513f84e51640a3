"""Problems that take Python: data in the text, and pictures of which only the pixels know the answer.

A picture of 192 to 256 pixels reaches the encoder downscaled; the tool's `img` has every pixel. The host computes the answer from what it
drew, never by running the code. Each kind has a text twin, in which the picture stands only in the tool: `img` beside a sentence about it.
`Posed.code` is one program that finds the answer; a crop's answer has to be looked at, so its twin says what it shows.
"""
from dataclasses import dataclass

import numpy as np

from . import content, draw
from .problems import digits_said, in_split, said
from .scenes import sample_kinds, sample_scene
from .types import Image, Problem


@dataclass(frozen=True)
class Posed:
    """A picture (uint8 (H, W, 3)), what to ask about it, a program and the answer; `names`: what the picture shows."""
    pixels: np.ndarray
    question: str
    code: str
    answer: str
    names: str
    verifier: str = "exact"


def large(rng):
    """A side in pixels, beyond what the encoder takes."""
    return int(rng.integers(192, 257))


def twin_context(posed, rng):
    """What a twin says about the picture: what it shows, its size, or nothing where the question holds two numbers or more (mostly places)."""
    height, width, _ = posed.pixels.shape
    places = sum(word.strip("?").isdigit() for word in posed.question.split()) >= 2
    choices = [(said(posed.names, rng),), (f"img has {width} x {height} pixels.",), ()]
    return choices[rng.integers(3 if places else 2)]


# ---- exact pixels ------------------------------------------------------------------------------------------------------------------

def pose_pixels(rng, split):
    """The values at one place, or how many pixels of a box are darker than a bound: never none or all of them."""
    scene = sample_scene(rng, split, kinds=sample_kinds(rng, int(rng.integers(1, 7)), split), sides=(192, 256))
    pixels = scene.picture(rng).pixels
    if rng.random() < 0.5:
        x, y = int(rng.integers(0, scene.width - 1)), int(rng.integers(0, scene.height - 1))
        return Posed(pixels, f"what are the values of the pixel at {x} {y}?", f"x, y = {x}, {y}\nprint(img.pixels((x, y, x + 1, y + 1))[0])",
                     str(tuple(map(int, pixels[y, x]))), scene.names)
    (x, x1), (y, y1) = (around(rng, edge, side) for edge, side in zip(scene.things[0].edges(), (scene.width, scene.height)))
    sums = pixels[y:y1, x:x1].astype(int).sum(-1)
    bound = int(sums.min() + sums.max() + 1) // 2
    dark = int((sums < bound).sum())
    return Posed(pixels, f"how many pixels with a sum below {bound} are in the box {x} {y} {x1} {y1}?",
                 f"print(sum(sum(p) < {bound} for p in img.pixels(({x}, {y}, {x1}, {y1}))))", str(dark), scene.names)


def around(rng, edge, side):
    """(first, end) of up to 40 pixels of a side, about half of them on each side of an edge of a thing."""
    first = max(0, int(edge) - int(rng.integers(5, 21)))
    return first, min(side, first + int(rng.integers(25, 41)))


def pose_illusion(rng, split):
    """Simultaneous contrast: two grey squares on a dark and a light half, equal or a few levels apart. The eye is fooled, pixels are not."""
    width, height, side = large(rng), large(rng), int(rng.integers(24, 41))
    dark, light = sorted(rng.choice(np.arange(20, 236), 2, replace=False))
    first = int(rng.integers(90, 166))
    second = first + int(rng.choice([0, 0, -8, -4, 4, 8]))
    canvas = np.empty((height, width, 3), np.float32)
    halves = (dark, light) if rng.random() < 0.5 else (light, dark)
    canvas[:, :width // 2], canvas[:, width // 2:] = halves
    at = [(int(rng.integers(a, a + width // 2 - side)), int(rng.integers(0, height - side))) for a in (0, width // 2)]
    for (x, y), grey in zip(at, (first, second)):
        canvas[y:y + side, x:x + side] = grey
    (x0, y0), (x1, y1) = ((x + side // 2, y + side // 2) for x, y in at)
    answer = "first" if first > second else "second" if second > first else "same"
    code = (f"a, b = [img.pixels((x, y, x + 1, y + 1))[0] for x, y in [({x0}, {y0}), ({x1}, {y1})]]\n"
            "print('first' if a > b else 'second' if b > a else 'same')")
    return Posed(draw.finish(canvas), f"which grey is lighter, first at {x0} {y0}, second at {x1} {y1}, or same?", code, answer,
                 "grey square, grey square")


# ---- programs over the whole picture -------------------------------------------------------------------------------------------------

def pose_specks(rng, split):
    """Too many dark specks to count by eye, on a light background: threshold, then count upper left corners."""
    width, height, number = large(rng), large(rng), int(rng.integers(7, 31))
    canvas = draw.background(rng, height, width)
    canvas += 170 - canvas.min()                                     # the background is light everywhere
    taken = np.zeros((height, width), bool)
    while number:
        side, x, y = int(rng.integers(3, 7)), int(rng.integers(2, width - 8)), int(rng.integers(2, height - 8))
        if not taken[y - 2:y + side + 2, x - 2:x + side + 2].any():
            taken[y:y + side, x:x + side], number = True, number - 1
    canvas[taken] = rng.uniform(0, 60)
    corners = taken & ~np.roll(taken, 1, 0) & ~np.roll(taken, 1, 1)
    code = ("w, h = img.size\np = [sum(c) < 300 for c in img.pixels()]\n"
            "print(sum(p[i] and not p[i - 1] and not p[i - w] for i in range(w + 1, w * h)))")
    return Posed(draw.finish(canvas), "how many dark specks are there?", code, str(int(corners.sum())), "dark specks")


MAZE = """w, h, p = {w}, {h}, img.pixels()
free = {{x + 99 * y for x in range(w) for y in range(h) if sum(p[64 * w * y + 8 * x]) > 300}}
at, n = {{0}}, 0
while w + 99 * h - 100 not in at:
    n, free = n + 1, free - at
    at = {{i + j for i in at for j in (1, -1, 99, -99)}} & free
print(n)"""


def maze_steps(free):
    """Length of the shortest way from the upper left to the lower right cell of free (h, w), or None."""
    front, seen, steps = {(0, 0)}, set(), 0
    while front:
        if (free.shape[0] - 1, free.shape[1] - 1) in front:
            return steps
        seen |= front
        near = {(y + dy, x + dx) for y, x in front for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0))} - seen
        front, steps = {(y, x) for y, x in near if 0 <= y < free.shape[0] and 0 <= x < free.shape[1] and free[y, x]}, steps + 1
    return None


def pose_maze(rng, split):
    """Cells of 8 pixels, more than a third of them walls: how long is the shortest way, none of its steps diagonal? Never as long as
    without walls. (The question is short, as a row of pre-training must hold it with its program.)"""
    steps = None
    while not steps or steps == height + width - 2:
        height, width = (int(n) for n in rng.integers(24, 33, size=2))
        free = rng.random((height, width)) > 0.38
        free[0, 0] = free[-1, -1] = True
        steps = maze_steps(free)
    cells = np.where(free, 220, 40).astype(np.uint8)
    pixels = np.repeat(cells.repeat(8, 0).repeat(8, 1)[..., None], 3, -1)
    return Posed(pixels, f"how many straight steps through this maze of {width} x {height} cells of 8 pixels?",
                 MAZE.format(w=width, h=height), str(steps), "maze")


# ---- a detail to be looked at ----------------------------------------------------------------------------------------------------------

def pose_detail(rng, split):
    """Digits 16 pixels high: less than one patch in the downscaled picture, legible in a crop, which the tool gives back as a picture."""
    scene = sample_scene(rng, split, kinds=sample_kinds(rng, int(rng.integers(1, 5)), split), sides=(208, 256))
    canvas = scene.picture(rng).pixels.astype(np.float32)
    images, labels = content.digits_split(split)
    picks = rng.integers(len(labels), size=int(rng.integers(2, 5)))
    wide, x, y = 16 * len(picks), int(rng.integers(0, scene.width - 16 * len(picks))), int(rng.integers(0, scene.height - 16))
    canvas[y:y + 16, x:x + wide] = 235
    draw.draw_digits(canvas, [images[i] for i in picks], x, y, 2, rng.uniform(0, 30, 3))
    box = f"{x} {y} {x + wide} {y + 16}"
    return Posed(draw.finish(canvas), f"what number is written in the box {box}?", f"img.crop(({box.replace(' ', ', ')}))",
                 "".join(str(labels[i]) for i in picks), f"{scene.names}, a number", "ocr")


POSES = (pose_pixels, pose_illusion, pose_specks, pose_maze, pose_detail)


# ---- problems --------------------------------------------------------------------------------------------------------------------------

def picture(rng, split):
    """The picture of such a problem, without its question."""
    return Image(POSES[rng.integers(len(POSES))](rng, split).pixels)


def problem_of(posed, modality, context, **meta):
    """The problem of a posed picture; the tool has it as `img`."""
    return Problem("code", modality, context, posed.question, posed.answer, "i use python.", posed.verifier, posed.code, {"img": posed.pixels, **meta})


def picture_tool_problems(rng, split):
    """A picture, a question that eyes cannot answer, the program that can. For the exam, RL and the ledger's eyes: pre-training shows
    such pictures (`picture`), never these questions about them."""
    posed = POSES[rng.integers(len(POSES))](rng, split)
    return [problem_of(posed, "image", (Image(posed.pixels),))]


def _img_tool_text(rng, split):
    """Text twin: the picture is only in the tool."""
    posed = POSES[rng.integers(len(POSES) - 1)](rng, split)
    return problem_of(posed, "text", twin_context(posed, rng))


def _list_tool(rng):
    numbers = [int(n) for n in rng.integers(1, 1000, size=int(rng.integers(3, 7)))]
    listed = ", ".join(map(str, numbers))
    question, expression = [("what is the sum of the numbers?", f"sum([{listed}])"),
                            ("what is the largest number?", f"max([{listed}])"),
                            ("what is the smallest number?", f"min([{listed}])"),
                            ("what are the numbers in order?", f"sorted([{listed}])")][rng.integers(4)]
    answer = {"sum": sum, "max": max, "min": min, "sorted": sorted}[expression.split("(")[0]](numbers)
    return Problem("code", "text", (f"the numbers are {listed}.",), question, str(answer), "i use python.", code=f"print({expression})")


def tool_problems(rng, split):
    """Problems without a picture whose answer takes a Python call."""
    return [in_split(_list_tool if rng.random() < 0.4 else lambda r: _img_tool_text(r, split), rng, split)]


def crop_problems(rng):
    """Training only, and text only: a crop is asked for in words, and what it would show comes back in words, too, as in every twin."""
    posed = pose_detail(rng, "train")
    return [problem_of(posed, "text", twin_context(posed, rng), returned=digits_said(posed.answer))]
