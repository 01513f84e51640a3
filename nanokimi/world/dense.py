"""Training-only pictures and clips with the most to say for their price: small canvases, several things on each, every one of them named.

A document from here costs less than a picture with questions, and almost every token of it is learned: an encoder that starts from nothing
needs many examples. The exam never draws from this file. All sizes and shares are ours; `level` as in problems.py.
"""
from . import content, draw
from .problems import ALL, IN_SCENES, shown_order
from .scenes import DIRECTIONS, Scene, Thing, film, free_place, moved, pictogram_size, sample_kinds, sample_scene, travel
from .types import Image


def crowd(rng, level, most=6):
    """A scene of 1 to `most` things (2 at level 0) on a canvas of 32 to 56 pixels (48 to 60 with a pictogram), mostly shapes: cheap colours and kinds."""
    kinds = sample_kinds(rng, int(rng.integers(1, 3 + round((most - 2) * level))), "train", IN_SCENES if rng.random() < 0.5 else ())
    return sample_scene(rng, "train", kinds=kinds, sides=(48, 60) if any(colour is None for colour, _ in kinds) else (32, 56))


def caption(rng, level):
    """[(picture, names)]: what is there, from left to right."""
    scene = crowd(rng, level)
    return [(scene.picture(rng, level), f" {scene.names}.")]


def boxes(rng, level, pictures=3):
    """[(picture, names with boxes)]: what is where, of few things, as places take many tokens. They are learned late and only from many
    examples, like motion: several small pictures share a document."""
    out = []
    for _ in range(pictures):
        scene = crowd(rng, level, 3)
        out.append((scene.picture(rng, level), f" {', '.join(placed(thing, scene) for thing in scene.things)}."))
    return out


def placed(thing, scene):
    """Its name and its box."""
    return f"{thing.name} {' '.join(map(str, thing.box(scene.width, scene.height)))}"


def album(rng, level, pictures=5):
    """[(picture, name)]: one thing that fills most of a small canvas, so that nobody has to guess which name is whose. Forms are learned
    here first: from pictures with several things alone, colours were learned and the eight kinds stayed at chance."""
    out = []
    for _ in range(pictures):
        colour, kind = sample_kinds(rng, 1, "train")[0] if rng.random() < 0.45 else (None, ALL[rng.integers(len(ALL))].name)
        size = int(rng.integers(8, 25)) if colour else pictogram_size(rng, 16, 38, "train")
        width, height = (int(size * side) for side in rng.uniform(1.1, 1.7, size=2))
        scene = Scene(width, height, (Thing(kind, colour, *free_place(rng, size, width, height, ()), size),))
        out.append((scene.picture(rng, level), f" {scene.names}."))
    return out


def handwriting(rng, level, pictures=4):
    """[(picture, number)]: one digit, later up to four, that fill most of a small canvas."""
    (images, labels), out = content.digits_split("train"), []
    for _ in range(pictures):
        picks = rng.integers(len(labels), size=int(rng.integers(1, 2 + round(3 * level))))
        pixels = draw.writing(rng, [images[i] for i in picks], room=1.5, level=level)
        out.append((Image(pixels), f" {''.join(str(labels[i]) for i in picks)}."))
    return out


def events(rng, level, clips=3):
    """[(clip, what each thing does)]. At level 0 a yellow square on dark ground moves, appears or vanishes: telling early from late is
    learned from the last two, and it helps to tell a direction from its opposite."""
    return [event(rng, level) for _ in range(clips)]


def event(rng, level):
    """One clip of one chunk, later sometimes of several, with one to three things."""
    count = int(rng.integers(1, 2 + round(2 * level)))
    kinds = sample_kinds(rng, count, "train") if rng.random() < 3 * level else [("yellow", "square")]
    if len(set(kinds)) < len(kinds):
        return event(rng, level)
    frames = int(rng.integers(5, 13)) if rng.random() < 0.4 * level else 4
    scene = sample_scene(rng, "train", kinds=kinds, sides=(24, 40 + round(8 * level)))
    acts = {thing: act(rng, scene, thing, frames) for thing in scene.things}
    plot = rng.random() / max(level, 1e-6)
    if plot < 0.4:                                                       # one thing acts, the others stay
        only = scene.things[rng.integers(len(scene.things))]
        acts |= {thing: ("stays", None, 0) for thing in scene.things if thing is not only}
    elif plot < 0.7:                                                     # one after the other
        for thing, when in zip(scene.things, rng.permutation(frames - 1) + 1):
            acts[thing] = ("appears", None, int(when))
    background = draw.background(rng, scene.height, scene.width, level)
    clip = film(background, frames, lambda f: [seen for t in scene.things for seen in performed(t, f, *acts[t])])
    says = ", ".join(f"{t.name} {acts[t][0]}" for t in scene.things)
    order = shown_order([(acts[t][2], t.name) for t in scene.things if acts[t][0] == "appears"])
    return clip, f" {says}.{order}"


def act(rng, scene, thing, frames):
    """(what it does, centres by frame, frame of the event): half of them move."""
    what = "moves" if rng.random() < 0.5 else ["appears", "vanishes", "appears", "vanishes", "blinks", "stays"][rng.integers(6)]
    way = list(DIRECTIONS)[rng.integers(8)]
    path = travel(rng, way, scene.width, scene.height, thing.size, frames)
    when = int(rng.integers(1, frames - 1 if what == "blinks" else frames))
    return f"moves {way}" if what == "moves" else what, path, when


def performed(thing, frame, act, path, when):
    """The thing as this frame shows it: [] or [thing]."""
    visible = {"appears": frame >= when, "vanishes": frame < when, "blinks": frame != when}.get(act, True)
    return [moved(thing, path[frame]) if act.startswith("moves") else thing] if visible else []
