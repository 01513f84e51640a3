"""Problems by ability. Every *_problems function takes (rng, split) and returns the problems about ONE context, pictures or their text twin.
`level` is how far training has come on the path from easy (few things, dark plain backgrounds, one chunk) to the exam's difficulty at 1.0.

A twin says in words what the picture shows, and asks the same questions: the model that learns both can carry one over to the other.
"""
import zlib

import numpy as np

from . import content, draw
from .scenes import DIRECTIONS, canvas_size, film, free_place, moved, pairs, pictogram_size, sample_kinds, sample_scene, travel
from .scenes import Scene, Thing
from .types import Image, Problem

WRITE_PROGRAM = "write the program."
NUMBER_WORDS = "zero one two three four five six seven eight nine".split()


def split_of_text(text):
    """The split of a text problem, by a hash of what it asks: one in ten is test, one in ten val."""
    return {0: "test", 1: "val"}.get(zlib.crc32(text.encode()) % 10, "train")


def in_split(make, rng, split):
    """Draw problems until one falls into the split (by its context and question)."""
    while True:
        problem = make(rng)
        if split_of_text("".join(map(str, problem.context)) + problem.question) == split:
            return problem


ALL = tuple(content.PICTOGRAMS.values())
COUNTRIES = tuple(p for p in ALL if p.capital)
IN_SCENES = tuple(p.name for p in ALL if not p.capital)          # pictograms that may stand in scenes beside drawn shapes: no flags


def shown_in_clips(name):
    """Half of the names may appear in training clips; the other half is seen in pictures only, which measures N+1."""
    return zlib.crc32(name.encode()) % 2 == 0


# ---- scenes: perception, counting, grounding, reasoning ---------------------------------------------------------------------------

def plural(word):
    """More than one of a kind."""
    return {"cross": "crosses"}.get(word, word + "s")


def count_question(rng, things):
    """How many objects, stars, or red shapes: (words, the things that count). A pictogram has no one colour, so it is an object, no shape."""
    shapes = [t for t in things if t.colour]
    kind_of = rng.choice(["all", "kind", "colour"] if shapes else ["all"])
    if kind_of == "all":
        return "objects", list(things)
    chosen = shapes[rng.integers(len(shapes))]
    if kind_of == "kind":
        return plural(chosen.kind), [t for t in things if t.kind == chosen.kind]
    return f"{chosen.colour} shapes", [t for t in things if t.colour == chosen.colour]


def count_aloud(scene, words, counted):
    """`from left to right: red star 1, ring, blue star 2. stars: 2.`: one look at everything, a number where it counts."""
    number, listed = 0, []
    for thing in scene.things:
        hit = any(thing is other for other in counted)
        number += hit
        listed.append(f"{thing.name} {number}" if hit else thing.name)
    return f"from left to right: {', '.join(listed)}. {words}: {number}."


def scene_questions(scene, rng):
    """(ability, question, reasoning, answer, verifier) for everything that this scene allows to ask without ambiguity."""
    things = scene.things
    words, counted = count_question(rng, things)
    rows = [("perception", "what is in the picture?", scene.caption, scene.names, "caption"),
            ("counting", f"how many {words} are there?", count_aloud(scene, words, counted), str(len(counted)), "count")]
    kinds, names = [t.kind for t in things], [t.name for t in things]
    alone = [t for t in things if t.colour and kinds.count(t.kind) == 1]
    if alone:
        thing = alone[rng.integers(len(alone))]
        rows.append(("perception", f"what colour is the {thing.kind}?", f"{scene.caption} the {thing.kind} is {thing.colour}.", thing.colour,
                     "exact"))
    unique = [i for i, name in enumerate(names) if names.count(name) == 1]
    return rows + (place_questions(scene, unique[rng.integers(len(unique))], rng) if unique else [])


def place_questions(scene, i, rng):
    """Where thing number i is, where all things of its colour are, and what comes before or after it from left to right."""
    things, thing = scene.things, scene.things[i]
    rows = [("grounding", f"where is the {thing.name}?", scene.caption, " ".join(map(str, thing.box(scene.width, scene.height))), "box")]
    if thing.colour:
        spots = [t.centre(scene.width, scene.height) for t in things if t.colour == thing.colour]
        rows.append(("grounding", f"point to the {thing.colour} shapes.", scene.caption, ", ".join(f"{x} {y}" for x, y in spots), "points"))
    word, j = [("after", i + 1), ("before", i - 1)][rng.integers(2)]
    if 0 <= j < len(things):
        rows.append(("reasoning", f"from left to right, what comes {word} the {thing.name}?",
                     f"{scene.caption} {word} the {thing.name} comes the {things[j].name}.", things[j].name, "exact"))
    return rows


def about_scene(scene, context, modality, rng):
    """All questions about a scene, as problems on a picture or on its description."""
    shown = {(thing.colour, thing.kind) for thing in scene.things if thing.colour}
    meta = {"objects": len(scene.things), "unseen_pair": bool(shown - set(pairs("train")))}
    return [Problem(ability, modality, context, question, answer, reasoning, verifier, meta=meta)
            for ability, question, reasoning, answer, verifier in scene_questions(scene, rng)]


def scene_problems(rng, split, count=None, modality="image", level=1.0):
    """Questions about one random scene: a picture, or its text twin, which is split by a hash of its words as it has no pixels."""
    if modality == "text":
        return described_problems(rng, split, count)
    kinds = sample_kinds(rng, count or int(rng.integers(1, 2 + round(5 * level))), split, IN_SCENES)
    sides = (48, 96) if any(colour is None for colour, _ in kinds) else (32, 96)      # a pictogram needs 14 pixels
    scene = sample_scene(rng, split, kinds=kinds, sides=sides)
    return about_scene(scene, (scene.picture(rng, level),), "image", rng)


def said(names, rng):
    """What a picture shows, in one of three forms: a question has to be understood from its own words, not from the words before it."""
    return f"{('a picture shows from left to right: ', 'from left to right: ', '')[rng.integers(3)]}{names}."


def described_problems(rng, split, count=None):
    """A scene in words. Without boxes it cannot answer `where`."""
    while True:
        scene = row_of(sample_kinds(rng, count or int(rng.integers(1, 7)), split, IN_SCENES))
        context = said(scene.names, rng)
        if split_of_text(scene.names) == split:
            return [p for p in about_scene(scene, (context,), "text", rng) if p.ability != "grounding"]


def row_of(kinds):
    """A scene that is only talked about: (colour, kind) pairs from left to right."""
    return Scene(64, 16, tuple(Thing(kind, colour, 8.0 * i, 8, 8) for i, (colour, kind) in enumerate(kinds, 1)))


def counting_problems(rng, split, level=1.0, modality="image", most=6):
    """One picture or its text twin, one count; answers 1 to `most` are equally frequent, so that a guess is right in 1/most."""
    target, choices = int(rng.integers(1, 2 + round((most - 1) * level))), pairs(split)
    colour, kind = choices[rng.integers(len(choices))]
    mode = ["all", "kind", "colour"][rng.integers(3)]
    matches = {"all": lambda pair: True, "kind": lambda pair: pair[1] == kind, "colour": lambda pair: pair[0] == colour}[mode]
    same, other = [p for p in choices if matches(p)], [p for p in choices if not matches(p)]
    extra = int(rng.integers(0, most + 1 - target)) if other else 0
    kinds = [same[rng.integers(len(same))] for _ in range(target)] + [other[rng.integers(len(other))] for _ in range(extra)]
    kinds = [kinds[i] for i in rng.permutation(len(kinds))]
    scene = row_of(kinds) if modality == "text" else sample_scene(rng, split, kinds=kinds, sides=(32, 96) if len(kinds) < 4 else (40, 96))
    if modality == "text" and split_of_text(scene.names) != split:
        return counting_problems(rng, split, level, modality, most)
    words = {"all": "objects", "kind": plural(kind), "colour": f"{colour} shapes"}[mode]
    asked = {words: [t for t in scene.things if matches((t.colour, t.kind))]}
    if split == "train":                                             # two more questions about the same picture cost next to nothing
        asked |= dict(count_question(rng, scene.things) for _ in range(2))
    context = (said(scene.names, rng),) if modality == "text" else (scene.picture(rng, level),)
    return [Problem("counting", modality, context, f"how many {words} are there?", str(len(counted)),
                    count_aloud(scene, words, counted), "count") for words, counted in asked.items()]


# ---- pictograms: names, categories, capitals -------------------------------------------------------------------------------------

def pictogram_scene(rng, split, name):
    """One pictogram on a canvas of 48 to 96 pixels, 16 pixels to 40 % of the side."""
    width, height = canvas_size(rng, 48, 96, split)
    size = pictogram_size(rng, 16, 0.4 * min(width, height), split)
    return Scene(width, height, (Thing(name, None, *free_place(rng, size, width, height, ()), size),))


def naming_problems(rng, split, name=None):
    """What is this? What kind of thing is it?"""
    pictogram = content.PICTOGRAMS[name] if name else ALL[rng.integers(len(ALL))]
    scene = pictogram_scene(rng, split, pictogram.name)
    problems = about_pictogram(pictogram, (scene.picture(rng),), "image", scene.caption)
    return problems if split != "train" or rng.random() < 0.3 else problems[:1]          # names are the harder half


def about_pictogram(pictogram, context, modality, caption):
    """Name and category of the one pictogram in a picture or clip."""
    meta = {"name": pictogram.name, "in_clips": shown_in_clips(pictogram.name)}
    name = Problem("knowledge", modality, context, "what is this?", pictogram.name, caption, meta=meta)
    category = Problem("knowledge", modality, context, "what kind of thing is this?", pictogram.category,
                       f"{caption} {pictogram.name}: {pictogram.category}.", meta=meta)
    return [name, category]


def category_problems(rng, split):
    """Text twin of naming: what kind of thing is an octopus?"""
    pictogram = ALL[rng.integers(len(ALL))]
    context = (f"a picture shows from left to right: {pictogram.name}.",)
    return about_pictogram(pictogram, context, "text", f"from left to right: {pictogram.name}.")


def capital_problems(rng, split):
    """Country -> capital, in text only. No document joins a flag's PICTURE to a capital: that is the a x b test."""
    flag = COUNTRIES[rng.integers(len(COUNTRIES))]
    return [Problem("knowledge", "text", (), f"what is the capital of {flag.name}?", flag.capital,
                    f"the capital of {flag.name} is {flag.capital}.", meta={"country": flag.name})]


def flag_capital_problems(rng, split):
    """a x b: the picture of a flag -> the capital. Exam only."""
    assert split != "train", "flag picture -> capital is never trained: it would make the a x b row meaningless"
    flag = COUNTRIES[rng.integers(len(COUNTRIES))]
    scene = pictogram_scene(rng, split, flag.name)
    return [Problem("knowledge", "image", (scene.picture(rng),), "what is the capital of this country?", flag.capital,
                    f"{scene.caption} the capital of {flag.name} is {flag.capital}.", meta={"country": flag.name})]


# ---- handwriting -----------------------------------------------------------------------------------------------------------------

def ocr_problems(rng, split, modality="image"):
    """Two to four handwritten digits in a row; writers are split by blocks of the file."""
    images, labels = content.digits_split(split)
    picks = rng.integers(len(labels), size=int(rng.integers(2, 5)))
    text = "".join(str(labels[i]) for i in picks)
    if modality == "text":
        context = (digits_said(text),)
    else:
        context = (Image(draw.writing(rng, [images[i] for i in picks])),)
    return [Problem("ocr", modality, context, "what number is written?", text, digits_read(text), "ocr")]


def digits_said(text):
    """What a picture of this number shows, in words."""
    return f"a picture shows the digits {', '.join(NUMBER_WORDS[int(digit)] for digit in text)}."


def digits_read(text):
    """The chain of thought that reads it."""
    return f"the digits {' '.join(text)}."


# ---- clips: direction, appeared, order, names --------------------------------------------------------------------------------------

def clip_frames(rng, level):
    """4 frames (one chunk) or 5 to 12 (two or three chunks), half and half; one chunk while the path to motion is being learned."""
    return int(rng.integers(5, 13)) if rng.random() < 0.5 * level else 4


def clip_scene(rng, split, count, level):
    """A scene and its background for a clip; level 0 is one plain colour, level 1 is anything (motion needs a path to be learned)."""
    high = int(round(48 + 48 * level))
    scene = sample_scene(rng, split, kinds=sample_kinds(rng, count, split), sides=(32, high))
    return scene, draw.background(rng, scene.height, scene.width, level)


def direction_problems(rng, split, level=1.0):
    """Which of eight ways does it move? In the exam the others stand still; in training they mostly move too, and each is asked about."""
    frames = clip_frames(rng, level)
    scene, background = clip_scene(rng, split, 1 + int(rng.integers(0, 3) * (rng.random() < level)), level)
    if len({t.name for t in scene.things}) < len(scene.things):
        return direction_problems(rng, split, level)
    movers = rng.permutation(len(scene.things))[:len(scene.things) if split == "train" and rng.random() < 0.7 else 1]
    ways = {int(i): list(DIRECTIONS)[rng.integers(8)] for i in movers}
    paths = {i: travel(rng, way, scene.width, scene.height, scene.things[i].size, frames) for i, way in ways.items()}
    still = [t for i, t in enumerate(scene.things) if i not in paths]
    clip = film(background, frames, lambda f: [*still, *(moved(scene.things[i], path[f]) for i, path in paths.items())])     # movers in front
    names = [t.name for t in scene.things]
    problems = [Problem("video", "video", (clip,), f"which way does the {names[i]} move?", way, f"the {names[i]} moves {way}.")
                for i, way in ways.items()]
    if len(ways) == 1 and len(names) > 1:
        problems.append(Problem("video", "video", (clip,), "what moves?", names[movers[0]], problems[0].reasoning))
    return problems


def appear_problems(rng, split, level=1.0):
    """Something appears, vanishes, or blinks for one frame."""
    frames = clip_frames(rng, level)
    scene, background = clip_scene(rng, split, 2 + int(rng.integers(0, 2)), level)
    if len({t.name for t in scene.things}) < len(scene.things):
        return appear_problems(rng, split, level)
    who, when = scene.things[rng.integers(len(scene.things))], int(rng.integers(1, frames))
    event = ["appears", "vanishes", "blinks"][rng.integers(3)]
    if event == "blinks":
        when = int(rng.integers(1, frames - 1))
    visible = {"appears": lambda f: f >= when, "vanishes": lambda f: f < when, "blinks": lambda f: f != when}[event]
    clip = film(background, frames, lambda f: [t for t in scene.things if t is not who or visible(f)])
    fact = f"the {who.name} {event}."
    return [Problem("video", "video", (clip,), "what happens?", f"{who.name} {event}", fact),
            Problem("video", "video", (clip,), f"what {event}?", who.name, fact)]


def shown_order(times):
    """` first the a appears, then the b appears.` for two (frame, name) at different frames, else nothing."""
    ordered = sorted(times)
    if len(ordered) != 2 or ordered[0][0] == ordered[1][0]:
        return ""
    return f" first the {ordered[0][1]} appears, then the {ordered[1][1]} appears."


def order_problems(rng, split, level=1.0):
    """Two things appear one after the other, often in different chunks: which comes first?"""
    frames = clip_frames(rng, level)
    scene, background = clip_scene(rng, split, 2 + int(rng.integers(0, 2) * (rng.random() < level)), level)
    if len({t.name for t in scene.things}) < len(scene.things):
        return order_problems(rng, split, level)
    first, second = [scene.things[i] for i in rng.permutation(len(scene.things))[:2]]
    when = sorted(int(f) + 1 for f in rng.permutation(frames - 1)[:2])
    start = {first: when[0], second: when[1]}
    clip = film(background, frames, lambda f: [t for t in scene.things if f >= start.get(t, 0)])
    fact = shown_order([(when[0], first.name), (when[1], second.name)]).strip()
    return [Problem("video", "video", (clip,), f"what appears {word}?", thing.name, fact)
            for word, thing in (("first", first), ("second", second))]


def clip_naming_problems(rng, split, level=1.0, shown=True):
    """A pictogram drifts through a clip: what is this? Training clips use only the names with shown_in_clips."""
    names = [p for p in ALL if shown_in_clips(p.name) == shown]
    assert shown or split != "train", "names kept out of training clips are what the N+1 row measures"
    pictogram, frames = names[rng.integers(len(names))], clip_frames(rng, level)
    scene = pictogram_scene(rng, split, pictogram.name)
    background = draw.background(rng, scene.height, scene.width, level)
    path = travel(rng, list(DIRECTIONS)[rng.integers(8)], scene.width, scene.height, scene.things[0].size, frames)
    clip = film(background, frames, lambda f: [moved(scene.things[0], path[f])])
    return about_pictogram(pictogram, (clip,), "video", scene.caption)


def clip_problems(rng, split, level=1.0):
    """One of the four kinds of clips."""
    kind = [direction_problems, direction_problems, appear_problems, order_problems, clip_naming_problems][rng.integers(5)]
    return kind(rng, split, level)


def clip_twin_problems(rng, split):
    """Text twin of a clip: the events in words."""
    a, b = rng.permutation(np.array(pairs(split), dtype=object))[:2]
    a, b = f"{a[0]} {a[1]}", f"{b[0]} {b[1]}"
    way, event = list(DIRECTIONS)[rng.integers(8)], ["appears", "vanishes", "blinks"][rng.integers(3)]
    fact, asked = [(f"the {a} moves {way}.", [(f"which way does the {a} move?", way), ("what moves?", a)]),
                   (f"the {a} {event}.", [("what happens?", f"{a} {event}"), (f"what {event}?", a)]),
                   (f"first the {a} appears, then the {b} appears.", [("what appears first?", a), ("what appears second?", b)]),
                   ][rng.integers(3)]
    return [Problem("video", "text", (f"a clip shows: {fact}",), question, answer, fact) for question, answer in asked]


def placed_problems(rng, split):
    """Text twin of grounding: the places in words, boxes or centres, in the hundredths that answers use."""
    scene = sample_scene(rng, split, kinds=sample_kinds(rng, int(rng.integers(1, 4)), split))
    boxes = [" ".join(map(str, t.box(scene.width, scene.height))) for t in scene.things]
    spots = ["{} {}".format(*t.centre(scene.width, scene.height)) for t in scene.things]
    i, names = int(rng.integers(len(boxes))), [t.name for t in scene.things]
    colour = scene.things[i].colour
    listed = lambda places: (f"a picture shows {', '.join(f'{name} at {place}' for name, place in zip(names, places))}.",)
    if names.count(names[i]) == 1 and rng.random() < 0.5:
        return [Problem("grounding", "text", listed(boxes), f"where is the {names[i]}?", boxes[i], scene.caption, "box")]
    same = ", ".join(spot for spot, t in zip(spots, scene.things) if t.colour == colour)
    return [Problem("grounding", "text", listed(spots), f"point to the {colour} shapes.", same, scene.caption, "points")]


# ---- text: arithmetic, drawing programs ---------------------------------------------------------------------------

def add_steps(a, b):
    """Column addition aloud, units first: 345 + 128 -> `5+8+0=13, 4+2+1=07, 3+1+0=04`."""
    steps, carry = [], 0
    for place_value in (1, 10, 100):
        x, y = a // place_value % 10, b // place_value % 10
        total = x + y + carry
        steps.append(f"{x}+{y}+{carry}={total:02d}")
        carry = total // 10
    return ", ".join(steps)


def subtract_steps(a, b):
    """Column subtraction aloud, each digit with ten lent to it: 473 - 77 -> `3-7-0=06, 7-7-1=09, 4-0-1=13`; a leading 0 borrows."""
    steps, borrow = [], 0
    for place_value in (1, 10, 100):
        x, y = a // place_value % 10, b // place_value % 10
        total = 10 + x - y - borrow
        steps.append(f"{x}-{y}-{borrow}={total:02d}")
        borrow = 1 - total // 10
    return ", ".join(steps)


def _arithmetic(rng, short=False):
    """short: each number has up to one, two or three digits, equally often; else few are below a hundred."""
    most = lambda: 10 ** int(rng.integers(1, 4)) if short else 1000
    value = int(rng.integers(0, most()))
    words, reasoning = [str(value)], []
    for _ in range(int(rng.integers(1, 4))):
        plus = rng.random() < 0.5 if 0 < value < 999 else value == 0
        other = int(rng.integers(1, min(most(), 1000 - value if plus else value + 1)))
        result = value + other if plus else value - other
        sign, steps = ("+", add_steps(value, other)) if plus else ("-", subtract_steps(value, other))
        reasoning.append(f"{value:03d} {sign} {other:03d}: {steps}, so {result}.")    # zeros: every column's digits stand equally far away
        words += [sign, str(other)]
        value = result
    return Problem("reasoning", "text", (), f"what is {' '.join(words)}?", str(value), " ".join(reasoning))


def arithmetic_problems(rng, split):
    """Up to three additions and subtractions of numbers up to 999, with every carry written down."""
    return [in_split(_arithmetic, rng, split)]


def chat_arithmetic_problems(rng, split):
    """The same, half of them short: 12 + 5 is what a person asks first, and numbers drawn evenly mostly have three digits."""
    return [in_split(lambda rng: _arithmetic(rng, short=rng.random() < 0.5), rng, split)]


def program_of(scene):
    """A drawing program: one call a thing, with its box as `where is` answers it."""
    return [(t.kind, t.colour, *t.box(scene.width, scene.height)) for t in scene.things]


def program_problems(rng, split):
    """Description -> drawing program, in text only (the other a x b pair). Scored by what it draws."""
    scene = sample_scene(rng, split, kinds=sample_kinds(rng, int(rng.integers(1, 4)), split))
    words = ", ".join(f"{colour} {kind} at {' '.join(map(str, box))}" for kind, colour, *box in program_of(scene))
    return [Problem("code", "text", (f"a picture shows {words}.",), WRITE_PROGRAM, written_program(scene), verifier="program")]


def picture_program_problems(rng, split):
    """a x b: picture -> drawing program. Exam only."""
    assert split != "train", "picture -> drawing program is never trained: it would make the a x b row meaningless"
    scene = sample_scene(rng, split, kinds=sample_kinds(rng, int(rng.integers(1, 4)), split))
    return [Problem("code", "image", (scene.picture(rng),), WRITE_PROGRAM, written_program(scene), verifier="program")]


def clip_program_problems(rng, split):
    """a x b: clip -> drawing program of all that was shown. Exam only."""
    assert split != "train", "clip -> drawing program is never trained: it would make the a x b row meaningless"
    frames = clip_frames(rng, 1.0)
    scene, background = clip_scene(rng, split, int(rng.integers(1, 4)), 1.0)
    since = [0, *sorted(rng.integers(0, frames, len(scene.things) - 1).tolist())]
    clip = film(background, frames, lambda f: [thing for thing, first in zip(scene.things, since) if f >= first])
    return [Problem("code", "video", (clip,), WRITE_PROGRAM, written_program(scene), verifier="program")]


def written_program(scene):
    """The scene's drawing program as text."""
    return " ".join(f"{kind}('{colour}', {', '.join(map(str, box))});" for kind, colour, *box in program_of(scene))
