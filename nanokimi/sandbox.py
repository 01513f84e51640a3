"""The Python tool: model-written code runs in pydantic-monty, an interpreter of its own in a worker process, and nowhere else.

Code sees no files, no network, no host objects but `Picture` and `Film`, whose methods take a box or a number and give pixels. Whatever it
returns is turned to text inside the sandbox too: `z = [[[0] * 1000] * 1000] * 1000` is tiny in memory and gigabytes as text.
Where monty has no wheel the tool answers that it is not available; there is no fallback to CPython, which could be used by accident.
"""
import atexit
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock

import numpy as np

try:
    import pydantic_monty as monty
except ImportError:
    monty = None

LIMITS = {"max_feed_duration_secs": 1.0, "max_memory": 64 * 2 ** 20, "max_recursion_depth": 200, "max_total_sleep_secs": 0.0,
          "max_suspensions": 4000}
OUTPUT_BYTES = 16 * 1024
PIXELS_PER_RUN = 2 ** 17        # two pictures of 256 x 256: reading costs host time, which the code's own clock does not see (ours)
PICTURES_PER_RUN = 4            # that a result may hold (ours)
CODE_CHARACTERS = 20_000
MESSAGE_CHARACTERS = 1000       # of an error, which can quote anything
WORKERS = 128                   # sandboxes open at once; 1 MB each, up to 40 MB once they hold pixels
_OPENING = Lock()


@dataclass
class ToolResult:
    """What a run gave: printed text and the last expression's value as text, pictures (uint8 (H, W, 3)), whether it ran without error.

    value: the last expression's value on the host (None after an error). Compare it, never print it: its text can be gigabytes.
    """
    text: str
    images: list[np.ndarray] = field(default_factory=list)
    ok: bool = True
    value: object = None


class Budget:
    """Pixels that the current run may still read."""
    left = PIXELS_PER_RUN

    def spend(self, pixels: int) -> None:
        """Raises ValueError (inside the sandbox) when the run asked for too many."""
        if pixels > self.left:
            raise ValueError(f"too many pixels: at most {PIXELS_PER_RUN} a run")
        self.left -= pixels


class Picture:
    """A picture as code sees it: `size` = (width, height), `pixels(box)`, `crop(box)`; a box is (x0, y0, x1, y1), x1 and y1 outside."""

    def __init__(self, array: np.ndarray, budget: Budget):
        assert array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8, f"want uint8 (H, W, 3), got {array.dtype} {array.shape}"
        self.array, self.budget, self.size = array, budget, (array.shape[1], array.shape[0])

    def pixels(self, box=None) -> list[tuple[int, int, int]]:
        """(r, g, b) of every pixel in the box, row by row; the whole picture without a box."""
        x0, y0, x1, y1 = (0, 0, *self.size) if box is None else self.checked(box)
        self.budget.spend((x1 - x0) * (y1 - y0))
        return list(map(tuple, self.array[y0:y1, x0:x1].reshape(-1, 3).tolist()))

    def crop(self, box) -> "Picture":
        """The part of the picture in the box."""
        x0, y0, x1, y1 = self.checked(box)
        return Picture(self.array[y0:y1, x0:x1], self.budget)

    def checked(self, box) -> tuple[int, int, int, int]:
        """Four whole numbers inside the picture, or an error that says what is wrong without quoting the argument (it can be huge)."""
        if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(type(v) is int for v in box):
            raise TypeError("a box is four whole numbers: (x0, y0, x1, y1)")
        x0, y0, x1, y1 = box
        width, height = self.size
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(f"the box must lie inside (0, 0, {width}, {height}), with x0 < x1 and y0 < y1")
        return x0, y0, x1, y1


class Film:
    """A clip as code sees it: `frames` = how many, `frame(i)` = a picture."""

    def __init__(self, array: np.ndarray, budget: Budget):
        good = array.ndim == 4 and len(array) and array.shape[3] == 3 and array.dtype == np.uint8
        assert good, f"want uint8 (T, H, W, 3), got {array.dtype} {array.shape}"
        self.array, self.budget, self.frames = array, budget, len(array)

    def frame(self, index) -> Picture:
        """Frame number index, counted from 0."""
        if type(index) is not int or not 0 <= index < self.frames:
            raise ValueError(f"a frame is a whole number from 0 to {self.frames - 1}")
        return Picture(self.array[index], self.budget)


class Exposed(monty.ClassInstance if monty else object):
    """What code may touch of a Picture or Film: the names listed in `_wrap`, and what those give."""

    def convert_value(self, name, value):
        return _wrap(value)


def _wrap(value):
    if isinstance(value, Picture):
        return Exposed(value, eager_attrs=("size",), allowed_methods=("pixels", "crop"))
    return Exposed(value, eager_attrs=("frames",), allowed_methods=("frame",)) if isinstance(value, Film) else value


@lru_cache(maxsize=1)
def _open_pool():
    pool = monty.Monty(max_processes=WORKERS, checkout_timeout=60.0, feed_duration_limit_grace=0.2)
    atexit.register(pool.__exit__, None, None, None)
    return pool.__enter__()


def _pool():
    """Worker processes, started at the first run and stopped with the program."""
    with _OPENING:                                               # tools of several responses run side by side: one of them opens it
        return _open_pool()


@dataclass
class Memo:
    """{all programs of a conversation so far: result of the last}, for conversations about the same media: the same programs give the same
    result. The k responses to a problem mostly run one program, and reading a picture of 256 x 256 takes a fifth of a second."""
    results: dict[tuple[str, ...], ToolResult] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)


class Sandbox:
    """One conversation's Python: variables live from run to run. Close it, or use it in a `with`.

    media: what code finds by name, {"img": uint8 (H, W, 3), "clip": uint8 (T, H, W, 3)}. memo: shared with others that have the same media.
    """

    def __init__(self, media: dict[str, np.ndarray] | None = None, memo: Memo | None = None):
        self.media, self.session, self.budget, self.memo = dict(media or {}), None, Budget(), memo or Memo()
        self.programs, self.done = (), 0                         # all so far; how many of them ran here, not only in another sandbox
        self.lost = False                                        # whether a session of this conversation was, with its variables

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Give the worker back. Variables are gone; the next run starts a new session."""
        self.programs, self.done, self.lost = (), 0, False
        self._give_back()

    def _give_back(self) -> None:
        if self.session is not None:
            session, self.session = self.session, None
            session.__exit__(None, None, None)

    def run(self, code: str) -> ToolResult:
        """Run code. Errors of the code, however hostile, are text in the result.

        After running out of time or memory the session is discarded: variables are gone, media stay.
        """
        self.programs += (code,)
        with self.memo.lock:                                     # a second one with this program waits for the first one's result
            result = None if self.lost else self.memo.results.get(self.programs)
            if result is None:
                for program in self.programs[self.done:]:        # earlier ones known from another sandbox: only their variables are missing
                    result = self._run(program)
                self.done = len(self.programs)
                if not self.lost:                                # it may be the machine's fault: others try for themselves, and keep their variables
                    self.memo.results[self.programs] = result
            return result

    def _run(self, code: str) -> ToolResult:
        if monty is None:
            return ToolResult("the python tool is not available here: pip install pydantic-monty", ok=False)
        if len(code) > CODE_CHARACTERS:
            return ToolResult(f"the program is too long: at most {CODE_CHARACTERS} characters", ok=False)
        self.budget.left = PIXELS_PER_RUN
        printed = monty.CollectString(max_bytes=OUTPUT_BYTES)
        try:
            value = self._feed(code, printed)
            images = self._show(value, printed)
            return ToolResult(printed.output.rstrip("\n"), images, True, value)
        except monty.MontyError as error:
            return ToolResult("\n".join(filter(None, (printed.output.rstrip("\n"), self._explain(error)))), ok=False)

    def _feed(self, code: str, printed):
        """Value of the last expression. Media are bound when the session opens."""
        inputs = {}
        if self.session is None:
            self.session = _pool().checkout(limits=LIMITS, os_policy={"random_start": {"seed": 0}})
            self.session.__enter__()
            inputs = {name: _wrap((Picture if array.ndim == 3 else Film)(array, self.budget)) for name, array in self.media.items()}
        return self.session.feed_run(code, inputs=inputs, print_callback=printed)

    def _show(self, value, printed) -> list[np.ndarray]:
        """The pictures in the value. Anything else is printed by the sandbox, which has the limits."""
        pictures = value if isinstance(value, (list, tuple)) else [value]
        if 0 < len(pictures) <= PICTURES_PER_RUN and all(isinstance(p, Picture) for p in pictures):
            return [p.array.copy() for p in pictures]
        if value is not None:
            try:
                self.session.feed_run("print(repr(_))", inputs={"_": _wrap(value)}, print_callback=printed)
            except monty.MontyError as error:
                if _fatal(error):
                    raise
                self.session.feed_run("print('<a value that cannot be shown>')", print_callback=printed)
        return []

    def _explain(self, error) -> str:
        """Type, message and line. Time, memory and crashes cost the session, whose heap nobody vouches for."""
        inner = error.exception()
        message = f"{type(inner).__name__}: {inner}"[:MESSAGE_CHARACTERS]
        if _fatal(error):
            self._discard()
            return message + "\nthe session was restarted: variables are gone"
        frames = error.traceback() if hasattr(error, "traceback") else []
        return message + (f" (line {frames[-1].line})" if frames else "")

    def _discard(self) -> None:
        self.lost = True
        try:
            self._give_back()
        except (monty.MontyError, RuntimeError):    # the worker is dead already; the pool has replaced it
            self.session = None


def _fatal(error) -> bool:
    """Whether the session is lost: out of time or memory, worker gone, or no calls to the host left."""
    inner = error.exception()
    return isinstance(inner, (TimeoutError, MemoryError)) or isinstance(error, monty.MontyCrashedError) or "suspension limit" in str(inner)
