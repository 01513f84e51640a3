"""Verifiers: from an answer in words to a score in [0, 1] (K2.5 report 4.4.2: rule-based outcome rewards by ability).

The exact maps are not disclosed; the ones below are ours.
"""
import math
import re
from collections import Counter
from functools import partial
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
    """[(numbers)] of places with `size` whole numbers in 0..99 each, whatever commas and brackets stand between them: `10 20, 30 40` and
    `[(10, 20), (30, 40)]` say the same; None if anything else is said."""
    numbers = re.sub(r"[(),;\[\]]", " ", normalise(text)).split()
    good = numbers and len(numbers) % size == 0 and all(re.fullmatch(r"[0-9]{1,2}", number) for number in numbers)
    return [[int(number) for number in numbers[i:i + size]] for i in range(0, len(numbers), size)] if good else None


def matched(got, want, similar):
    """similar(a, b) of each pair in the best one-to-one matching of the things in two lists. No list (None), or one that is too long,
    matches nothing."""
    if got is None or len(got) > MOST_MATCHED:
        return [0.0]
    few, many = sorted((got, want), key=len)
    return max(([similar(a, b) for a, b in zip(few, order)] for order in permutations(many, len(few))), key=sum)


def matched_f1(got, want, similar):
    """F1 with the best matching, where similar(a, b) in [0, 1] replaces a hit (K2.5 4.4.2)."""
    return 2 * sum(matched(got, want, similar)) / (len(got or ()) + len(want))


def iou(a, b):
    """Intersection over union of two boxes x0 y0 x1 y1 (both ends inside); 0 for a box that is inside out."""
    if any(box[0] > box[2] or box[1] > box[3] for box in (a, b)):
        return 0.0
    area = lambda c: (c[2] - c[0] + 1) * (c[3] - c[1] + 1)
    sides = [min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1)]
    overlap = max(0, sides[0]) * max(0, sides[1])
    return overlap / (area(a) + area(b) - overlap)


def near(a, b):
    """A Gaussian of the distance of two points x y (the width is ours)."""
    return math.exp(-((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (2 * POINT_SIGMA ** 2))


CALLS = "calls = []\n" + "".join(f"def {kind}(*a): calls.append(('{kind}', *a))\n" for kind in draw.KINDS)


def is_call(call):
    """Whether this is (kind, colour, x0, y0, x1, y1) with known names and sensible numbers: a program may put anything into its list."""
    return (type(call) is tuple and len(call) == 6 and call[0] in draw.KINDS and type(call[1]) is str and call[1] in draw.COLOURS
            and all(type(v) is int and -99 <= v <= 199 for v in call[2:]))


def drawn(program):
    """What a drawing program draws, run in the sandbox: [(kind, colour, x0, y0, x1, y1)], or None if it fails."""
    with Sandbox() as box:
        result = box.run(f"{CALLS}{program}\ncalls")
    good = result.ok and isinstance(result.value, list) and all(map(is_call, result.value))
    return result.value if good else None


def same_shape(a, b):
    """Of two calls: the IoU of their boxes where kind and colour are the same, else 0."""
    return iou(a[2:], b[2:]) if a[:2] == b[:2] else 0.0


def written(truth):
    """The calls of a true program, which has nothing else: read, not run, so that no busy machine can fail it."""
    calls = re.findall(r"(\w+)\('(\w+)', (\d+), (\d+), (\d+), (\d+)\)", truth)
    assert calls, f"{truth!r} is no true program: it draws nothing"
    return [(kind, colour, *map(int, edges)) for kind, colour, *edges in calls]


# verifier: (answer -> list of things, truth -> list of things, how alike two of them are). Boxes `x0 y0 x1 y1` and points `x y` in hundredths of
# the picture's width and height, compared by IoU and by a Gaussian of the distance (K2.5 4.4.2). Programs: K2.5 compares renderings; ours are
# compared call by call, as a circle covers three quarters of its square: painted pixels alone would take the one for the other.
BOXES, POINTS = partial(places, size=4), partial(places, size=2)
LISTS = {"box": (BOXES, BOXES, iou), "points": (POINTS, POINTS, near), "program": (drawn, written, same_shape)}


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


WORDS = {"exact": exact, "caption": caption_f1, "count": count, "ocr": ocr}


def rate(verifier, answer, truth):
    """How right an answer is, in [0, 1]: for boxes, points and programs the F1 of K2.5 4.4.2."""
    if verifier in WORDS:
        return WORDS[verifier](answer, truth)
    read, true, similar = LISTS[verifier]
    return matched_f1(read(answer), true(truth), similar)


def score(problem, answer):
    """Reward of an answer to a problem, in [0, 1]."""
    return rate(problem.verifier, answer, problem.answer)


def correct(problem, answer):
    """True where the answer is right: the same words, for captions every object; of boxes, points and programs as many things as there are,
    each of them at least half alike (IoU 0.5 is the usual bound)."""
    if problem.verifier in WORDS:
        return score(problem, answer) == 1.0
    read, true, similar = LISTS[problem.verifier]
    got, want = read(answer), true(problem.answer)
    return got is not None and len(got) == len(want) and min(matched(got, want, similar)) >= 0.5
