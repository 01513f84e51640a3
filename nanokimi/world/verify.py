"""Verifiers: from an answer in words to a score in [0, 1] (K2.5 report 4.4.2: rule-based outcome rewards by ability).

The exact maps are not disclosed; the ones below are ours.
"""
import math
import re
from collections import Counter
from itertools import permutations

from nanokimi.sandbox import Sandbox
from . import draw

POINT_SIGMA = 8                 # hundredths of the picture's side (ours)
MOST_MATCHED = 7                # things in an answer: all matchings are tried


def normalise(text):
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(text.lower().split()).rstrip(" .")


def listed(text):
    """normalise, and lists without brackets and with one space after a comma: (1,2) and [1, 2] say the same."""
    return re.sub(r"\s*,\s*", ", ", normalise(re.sub(r"[()\[\]]", " ", text)))


def exact(answer, truth):
    """1 if the same words, else 0."""
    return float(listed(answer) == listed(truth))


def caption_f1(answer, truth):
    """F1 over the listed objects, as multisets of names: colour and kind must both be right."""
    got, want = (Counter(part.strip() for part in normalise(text).split(",") if part.strip()) for text in (answer, truth))
    return 2 * sum((got & want).values()) / max(1, sum(got.values()) + sum(want.values()))


def count(answer, truth):
    """1 - |difference| / truth, not below 0: counting by difference, as in K2.5 4.4.2 (the map is ours)."""
    if not re.fullmatch(r"[0-9]{1,3}", normalise(answer)):
        return 0.0
    return max(0.0, 1 - abs(int(normalise(answer)) - int(truth)) / max(1, int(truth)))


def places(text, size):
    """[(numbers)] of a comma-separated list of places with `size` whole numbers in 0..99 each; None if anything else is said."""
    parts = [part.split() for part in normalise(text).split(",")]
    good = all(len(part) == size and all(re.fullmatch(r"[0-9]{1,2}", number) for number in part) for part in parts)
    return [[int(number) for number in part] for part in parts] if good else None


def matched_f1(got, want, similar):
    """F1 with the best one-to-one matching of the things in two lists; similar(a, b) in [0, 1] replaces a hit (K2.5 4.4.2). No list
    (None), or one that is too long, scores 0."""
    if got is None or len(got) > MOST_MATCHED:
        return 0.0
    few, many = sorted((got, want), key=len)
    best = max(sum(similar(a, b) for a, b in zip(few, order)) for order in permutations(many, len(few)))
    return 2 * best / (len(got) + len(want))


def iou(a, b):
    """Intersection over union of two boxes x0 y0 x1 y1 (both ends inside); 0 for a box that is inside out."""
    if any(box[0] > box[2] or box[1] > box[3] for box in (a, b)):
        return 0.0
    area = lambda c: (c[2] - c[0] + 1) * (c[3] - c[1] + 1)
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1)]
    overlap = max(0, sides[0]) * max(0, sides[1])
    return overlap / (area(a) + area(b) - overlap)


def box(answer, truth):
    """Boxes `x0 y0 x1 y1` in hundredths of the picture: IoU-F1 (K2.5 4.4.2), which for one box is its IoU."""
    return matched_f1(places(answer, 4), places(truth, 4), iou)


def points(answer, truth):
    """Points `x y` in hundredths of the picture: F1 with a Gaussian of the distance instead of hits (K2.5 4.4.2; the width is ours)."""
    near = lambda a, b: math.exp(-((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (2 * POINT_SIGMA ** 2))
    return matched_f1(places(answer, 2), places(truth, 2), near)


CALLS = "calls = []\n" + "".join(f"def {kind}(*a): calls.append(('{kind}', *a))\n" for kind in draw.KINDS)


def is_call(call):
    """Whether this is (kind, colour, x, y, size) with known names and sensible numbers: a program may put anything into its list."""
    return (type(call) is tuple and len(call) == 5 and call[0] in draw.KINDS and type(call[1]) is str and call[1] in draw.COLOURS
            and all(type(v) is int and -99 <= v <= 199 for v in call[2:]))


def drawn(program):
    """What a drawing program draws, run in the sandbox: [(kind, colour, x, y, size)], or None if it fails."""
    with Sandbox() as box:
        result = box.run(f"{CALLS}{program}\ncalls")
    good = result.ok and isinstance(result.value, list) and all(map(is_call, result.value))
    return result.value if good else None


def same_shape(a, b):
    """Of two calls: the IoU of their boxes where kind and colour are the same, else 0."""
    box = lambda x, y, size: (x - size / 2, y - size / 2, x + size / 2 - 1, y + size / 2 - 1)
    return iou(box(*a[2:]), box(*b[2:])) if a[:2] == b[:2] else 0.0


def program(answer, truth):
    """IoU-F1 over what is drawn. K2.5 compares renderings; ours are compared call by call, as a circle covers three quarters of its
    square: painted pixels alone would take the one for the other."""
    return matched_f1(drawn(answer), written(truth), same_shape)


def written(truth):
    """The calls of a true program, which has nothing else: read, not run, so that no busy machine can fail it."""
    calls = re.findall(r"(\w+)\('(\w+)', (\d+), (\d+), (\d+)\)", truth)
    assert calls, f"{truth!r} is no true program: it draws nothing"
    return [(kind, colour, int(x), int(y), int(size)) for kind, colour, x, y, size in calls]


def edit_distance(a, b):
    """Levenshtein distance of two strings."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def ocr(answer, truth):
    """1 - edit distance / length, not below 0; the digits may stand apart."""
    got, want = (normalise(text).replace(" ", "") for text in (answer, truth))
    return max(0.0, 1 - edit_distance(got, want) / max(1, len(want)))


VERIFIERS = {"exact": exact, "caption": caption_f1, "count": count, "box": box, "points": points, "ocr": ocr, "program": program}


def score(problem, answer):
    """Reward of an answer to a problem, in [0, 1]."""
    return VERIFIERS[problem.verifier](answer, problem.answer)


def correct(problem, answer):
    """True where the answer is right: the same words; for boxes, points and programs a score of at least 0.5; for captions every
    object."""
    return score(problem, answer) >= (0.5 if problem.verifier in ("box", "points", "program") else 1.0)
