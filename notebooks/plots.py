"""What the notebooks share: the look of their figures, rows of pictures, bars with intervals, what a notebook cost."""
import resource
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np

from nanokimi.report import GREEN, GRID, INK, MUTED, RED, STAGE_COLOURS, style, wilson_interval     # noqa: F401  (for the notebooks)

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
        ax.set_title(titles[i] if i < len(titles) else "", fontsize=8, color=colours[i] if i < len(colours) else INK, parse_math=False)
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


def cost():
    """Prints the seconds since this module was imported, those of the processor, and the most memory that the process held."""
    print(f"{time.time() - BEGAN:.0f} seconds ({time.process_time():.0f} of one core), {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20:.2f} GB at most")
