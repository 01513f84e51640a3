"""What the notebooks share: the look of their figures, rows of pictures, bars with intervals, the two large figures of notebook 9, what
a call and a notebook cost."""
import resource
import time
import warnings
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from nanokimi.report import GRID, INK, MUTED, RED, STAGE_COLOURS, style, wilson_interval     # noqa: F401  (for the notebooks)

warnings.filterwarnings("ignore", message="IProgress|Glyph")             # a missing progress bar; what an untrained model says
BLUE, ORANGE, LEAF, PURPLE, ROSE = STAGE_COLOURS
BEGAN = time.time()
plt.rcParams.update({"figure.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": 90, "font.size": 9, "figure.figsize": (7, 2.8),
                     "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False})


def pictures(frames, titles=(), height=1.5, colours=()):
    """A row of pictures uint8 (H, W, 3) without smoothing, a title above each."""
    fig, axes = plt.subplots(1, len(frames), figsize=(1.15 * height * len(frames), height + 0.35), squeeze=False)
    for i, (ax, frame) in enumerate(zip(axes[0], frames)):
        ax.imshow(frame, interpolation="nearest"), ax.axis("off")
        title = fill(titles[i], round(17 * height)) if i < len(titles) else ""                       # as wide as its picture
        ax.set_title(title, fontsize=8, color=colours[i] if i < len(colours) else INK, parse_math=False)
    plt.show()


def bars(groups, title="", ylabel="accuracy"):
    """groups: {group: {name: list of right or wrong}} -> one cluster of bars a group, 95 % intervals, the number above each bar."""
    names = list(dict.fromkeys(name for rows in groups.values() for name in rows))
    fig, ax = plt.subplots(figsize=(max(5.0, 0.55 * len(names) * len(groups) + 2.2), 2.6))
    for j, name in enumerate(names):
        x = np.array([i + 0.8 * (j + 0.5) / len(names) - 0.4 for i, rows in enumerate(groups.values()) if name in rows])
        hits = [rows[name] for rows in groups.values() if name in rows]
        ends = [wilson_interval(sum(hit), len(hit)) for hit in hits]
        mean = np.array([np.mean(hit) for hit in hits])
        ax.bar(x, mean, 0.72 / len(names), color=STAGE_COLOURS[j % 5], label=name)
        ax.errorbar(x, mean, [mean - [low for low, _ in ends], [high for _, high in ends] - mean], fmt="none", ecolor=INK, capsize=2, lw=1)
        for place, value, (_, high) in zip(x, mean, ends):
            ax.text(place, high + 0.02, f"{value:.2f}", ha="center", fontsize=7.5, color=MUTED)
    style(ax, title)
    ax.set(xticks=range(len(groups)), xticklabels=list(groups), ylim=(0, 1.12), ylabel=ylabel)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()


def infrastructure(boxes):
    """k1.5's Fig. 3 with our names. boxes: {name: (x, y, width, height, title, words, colour)}."""
    fig, ax = plt.subplots(figsize=(10.5, 4.9))
    ax.set(xlim=(-0.5, 21), ylim=(0, 9.8)), ax.axis("off")
    for x, y, w, h, title, words, colour in boxes.values():
        ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0.05", fc="white", ec=colour, lw=1.6))
        ax.text(x + w / 2, y + h - 0.45, title, ha="center", va="center", fontsize=10, color=colour, weight="bold")
        ax.text(x + w / 2, y + (h - 0.7) / 2, words, ha="center", va="center", fontsize=7.8, color=INK, linespacing=1.4)
    arrows = [((7.2, 8.2), (3.5, 6.5), "problems", (4.1, 7.6), "-|>"), ((13.8, 8.2), (17.5, 6.5), "groups, rewards", (17.4, 7.6), "-|>"),
              ((6.8, 5.3), (7.4, 5.3), "", (0, 0), "<|-|>"),
              ((2.8, 4.1), (2.8, 3.0), "call", (2.2, 3.5), "-|>"), ((4.2, 3.0), (4.2, 4.1), "result", (5.0, 3.5), "-|>"),
              ((6.8, 4.4), (8.4, 3.0), "answer, reward", (9.3, 3.5), "<|-|>"), ((17.5, 4.1), (17.5, 3.0), "step", (18.3, 3.5), "-|>")]
    for start, end, words, place, head in arrows:
        line = "--" if words == "step" else "-"
        ax.add_patch(FancyArrowPatch(start, end, arrowstyle=head, mutation_scale=11, color=MUTED, lw=1.2, linestyle=line))
        ax.text(*place, words, fontsize=8, color=MUTED, ha="center")
    ax.plot([17.5, 17.5, -0.2, -0.2], [0.75, 0.15, 0.15, 5.3], color=MUTED, lw=1.2, ls="--")
    ax.annotate("", (0.3, 5.3), (-0.3, 5.3), arrowprops={"arrowstyle": "-|>", "color": MUTED})
    ax.text(10.5, 0.3, "weights of the next iteration (Engine.version counts)", fontsize=8, color=MUTED, ha="center")
    plt.show()


def waiting(runs):
    """{title: campaign}: who samples and who waits, step by step; a bar (row, first step, tokens, the longest row's tokens, continued)."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", sharey=True)
    for ax, (title, run) in zip(axes, runs.items()):
        for row, start, n, longest, continued in run["bars"]:
            ax.barh(row, longest, left=start, height=1.0, color=GRID, lw=0)
            ax.barh(row, n, left=start, height=0.8, color=ORANGE if continued else BLUE, lw=0)
        for start in sorted({start for _, start, *_ in run["bars"]}):
            ax.axvline(start, color=INK, lw=0.6)
        style(ax, f"{title}: blue new, orange continued, grey waits", "decoding steps", grid=False)
    axes[0].set_ylabel("row"), axes[0].invert_yaxis()
    plt.show()


def timed(clock, owner, name, label, note=None):
    """Adds the seconds of every call of owner.name to clock[label], and shows its arguments to `note`. Returns what undoes that."""
    inner = getattr(owner, name)

    def outer(*args, **given):
        start = time.perf_counter()
        try:
            return inner(*args, **given)
        finally:
            clock[label] += time.perf_counter() - start
            if note:
                note(*args)
    own = name in vars(owner)
    setattr(owner, name, outer)
    return lambda: setattr(owner, name, inner) if own else delattr(owner, name)


def cost():
    """Prints the seconds since this module was imported, those of the processor, and the most memory that the process held."""
    print(f"{time.time() - BEGAN:.0f} seconds ({time.process_time():.0f} of one core), {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20:.2f} GB at most")
