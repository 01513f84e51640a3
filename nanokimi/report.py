"""Figures of a finished run: loss, accuracy by ability, expert load, a sheet of answers, and the diagram of the whole stack.

Every PNG has a white card background (legible on light and dark pages) and a palette of 256 colours, so that it stays small (< 150 KB).
"""
import io
import math
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle
from PIL import Image

from nanokimi.checkpoint import read_rows
from nanokimi.config import ModelConfig

INK, MUTED, LINE, GRID = "#1f2328", "#68707a", "#cfd6dd", "#e8ebee"
GREEN, RED = "#2a7d4f", "#b3372f"
STAGE_COLOURS = ["#2f6fb2", "#c8741c", "#3a8f5c", "#8156b8", "#b0506f"]
TYPES = ("text", "image", "video")             # token types of the expert-load figure
DPI = 110


def wilson_interval(correct, n, z=1.96):
    """95 % interval (low, high) of an accuracy of `correct` out of n problems (Wilson's score interval). n must be positive."""
    assert n > 0 and 0 <= correct <= n, f"{correct} correct of {n} problems"
    p, spread = correct / n, z * z / n
    centre = (p + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    return min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half))      # it holds p: rounding must not say otherwise


# ------------------------------------------------------------------------------------------------------------ run figures

def plot_run(metrics, out_dir):
    """Draws loss.png, accuracy.png and load.png of the run whose metrics.jsonl is `metrics` into out_dir; returns the paths written.

    A row is {"stage", "step", "loss", "tokens", "val": {ability: accuracy}, "load": {type: [[..E..] a layer]}, ...}; all but stage and
    step are optional, and a figure without data is left out. `step` restarts with each stage. ValueError if there are no rows.
    """
    rows = read_rows(metrics)
    if not rows:
        raise ValueError(f"{metrics} has no rows: nothing to draw")
    out_dir, stages, written = Path(out_dir), stage_spans(rows), []
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, key, draw in (("loss.png", "loss", loss_figure), ("accuracy.png", "val", accuracy_figure), ("load.png", "load", load_figure)):
        having = [row for row in rows if key in row]
        if having:
            written.append(save_png(draw(having, stages), out_dir / name))
    return written


def stage_spans(rows):
    """{stage: (first x, last x, colour)} in order; x counts steps over all stages."""
    spans, start = {}, 0
    for stage in dict.fromkeys(row["stage"] for row in rows):
        end = start + max(row["step"] for row in rows if row["stage"] == stage)
        spans[stage] = (start, end, STAGE_COLOURS[len(spans) % len(STAGE_COLOURS)])
        start = end
    return spans


def loss_figure(rows, stages):
    """Training loss: every logged value pale, its running mean dark, one colour a stage."""
    fig = Figure(figsize=(7.6, 3.4), layout="constrained")
    ax = fig.add_subplot()
    for i, (stage, (start, end, colour)) in enumerate(stages.items()):
        x = np.array([start + row["step"] for row in rows if row["stage"] == stage])
        y = np.array([row["loss"] for row in rows if row["stage"] == stage])
        if len(x):
            mean = running_mean(y)
            ax.plot(x, y, color=colour, alpha=0.25, lw=1)
            ax.plot(x, mean, color=colour, lw=2)
            ax.annotate(f"{mean[-1]:.2f}", (x[-1], mean[-1]), (0, 8), textcoords="offset points", ha="right", color=colour, fontsize=9)
        ax.axvline(end, color=LINE, lw=1, zorder=0)
        place = ((start + end) / 2, 0.97 - 0.07 * (i % 2))                                # names of short neighbours do not collide
        ax.annotate(stage, place, xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=9, color=colour)
    ax.set_xlim(0, 1.01 * max(1, end))
    ax.set_ylim(0, 1.05 * np.percentile([row["loss"] for row in rows], 99.5))
    style(ax, "Loss per target token (nats)", "step")
    return fig


def running_mean(y, share=0.02):
    """Mean over a centred window of `share` of the points, at least 1 and shorter at both ends; as long as y."""
    half = int(len(y) * share / 2)
    total = np.concatenate([[0.0], np.cumsum(y)])
    low, high = np.maximum(np.arange(len(y)) - half, 0), np.minimum(np.arange(len(y)) + half + 1, len(y))
    return (total[high] - total[low]) / (high - low)


def accuracy_figure(rows, stages):
    """One panel an ability, so that eight lines need no legend: accuracy on val over steps, its last value beside the name."""
    abilities = list(dict.fromkeys(ability for row in rows for ability in row["val"]))
    columns, lines = min(4, len(abilities)), math.ceil(len(abilities) / 4)
    fig = Figure(figsize=(max(4.0, 2.15 * columns), 0.4 + 1.55 * lines), layout="constrained")
    axes = fig.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for ax, ability in zip(axes, abilities):
        accuracy_panel(ax, ability, rows, stages)
    for i in range(len(abilities), len(axes)):
        axes[i].set_visible(False)
        axes[i - columns].tick_params(labelbottom=True)
    fig.suptitle("Exact match on val, teacher-forced, by ability", fontsize=10, color=INK, x=0.01, ha="left")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=len(stages), frameon=False, labelcolor="linecolor")
    return fig


def accuracy_panel(ax, ability, rows, stages):
    """One ability's line, coloured by stage, with a pale join between stages."""
    points = [(stages[row["stage"]][0] + row["step"], row["val"][ability], row["stage"]) for row in rows if ability in row["val"]]
    ax.plot([x for x, _, _ in points], [y for _, y, _ in points], color=GRID, lw=2)
    for stage, (_, _, colour) in stages.items():
        mine = [(x, y) for x, y, s in points if s == stage]
        ax.plot([x for x, _ in mine], [y for _, y in mine], color=colour, lw=2, marker="o", ms=3, label=stage)
    style(ax, f"{ability}  {100 * points[-1][1]:.0f} %")
    ax.set(ylim=(0, 1.03), yticks=[0, 0.5, 1], yticklabels=["0", "50 %", "100 %"])


def load_figure(rows, stages):
    """The last logged expert load: a heat map (layer, expert) a token type, in multiples of an even split (1 = balanced). `stages` is what the
    other figures take."""
    load = {kind: np.array(rows[-1]["load"][kind], float) for kind in TYPES if kind in rows[-1]["load"]}
    layers, experts = next(iter(load.values())).shape
    fig = Figure(figsize=(max(3.0, 0.34 * experts) * len(load) + 0.9, 1.15 + 0.36 * layers), layout="constrained")
    axes = fig.subplots(1, len(load), sharey=True, squeeze=False)[0]
    for ax, (kind, counts) in zip(axes, load.items()):
        relative = counts / np.maximum(counts.mean(1, keepdims=True), 1e-9)               # (layers, E)
        image = ax.imshow(relative, cmap="PuOr_r", vmin=0, vmax=2, aspect="auto")
        if experts <= 16:
            for (layer, expert), value in np.ndenumerate(relative):
                ink = "white" if abs(value - 1) > 0.7 else INK
                ax.text(expert, layer, f"{value:.1f}", ha="center", va="center", fontsize=6.5, color=ink)
        style(ax, f"{kind} tokens", "expert", grid=False)
        ax.set_xticks(range(0, experts, max(1, experts // 8)))
        ax.set_yticks(range(layers), range(1, layers + 1))
    axes[0].set_ylabel("MoE layer", fontsize=9, color=MUTED)
    fig.colorbar(image, ax=list(axes), extend="max", ticks=[0, 1, 2], shrink=0.9).ax.tick_params(labelsize=8, colors=MUTED)
    fig.suptitle("Expert load of the last logged step (1 = an even split)", fontsize=10, color=INK, x=0.01, ha="left")
    return fig


def style(ax, title, xlabel="", grid=True):
    """The look of every axis: title left, no box, pale grid."""
    ax.set_title(title, fontsize=9.5, color=INK, loc="left")
    ax.set_xlabel(xlabel, fontsize=9, color=MUTED)
    ax.tick_params(labelsize=8, colors=MUTED, length=0)
    ax.spines[:].set_visible(False)
    if grid:
        ax.grid(axis="y", color=GRID)


def save_png(fig, path):
    """Renders on white and stores with 256 colours; returns the path."""
    fig.savefig(buffer := io.BytesIO(), format="png", dpi=DPI, facecolor="white")
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    return Path(path)


# ------------------------------------------------------------------------------------------------------------ answers

CARD_W, CARD_H, PICTURE = 5.6, 2.0, 1.7        # inches


def answers_picture(items, path, columns=2):
    """A sheet of question cards. An item is a dict:

    frames: list of uint8 (H, W, 3); none = a text question, one = a picture, more = a clip (6 at most are shown, evenly chosen);
    question, answer, expected: str; thinking: str or None; correct: bool.
    """
    assert items, "answers_picture needs at least one item"
    fig, ax = canvas(columns * CARD_W + 0.2, math.ceil(len(items) / columns) * CARD_H + 0.2)
    for i, item in enumerate(items):
        answer_card(ax, 0.1 + i % columns * CARD_W, 0.1 + i // columns * CARD_H, item)
    return save_png(fig, path)


def answer_card(ax, x, y, item):
    """One card with its top left corner at (x, y) inches: pictures left, then question, thinking, answer."""
    box(ax, x + 0.05, y + 0.05, CARD_W - 0.1, CARD_H - 0.1, face="white", edge=LINE)
    left, right, place = x + 0.2, x + CARD_W - 0.15, y + 0.26
    if item["frames"]:
        draw_frames(ax, x + 0.15, y + 0.15, item["frames"])
        left += PICTURE + 0.05
    place = paragraph(ax, left, place, right, item["question"], 3, color=INK, weight="bold") + 0.05
    if item.get("thinking"):
        place = paragraph(ax, left, place, right, item["thinking"], 4, color=MUTED, style="italic") + 0.05
    mark, colour = ("\u2713", GREEN) if item["correct"] else ("\u2717", RED)
    place = paragraph(ax, left, place, right, f"{mark} {item['answer'] or '(no answer)'}", 2, color=colour, weight="bold")
    if not item["correct"]:
        paragraph(ax, left, place, right, f"expected: {item['expected']}", 1, color=MUTED)


def draw_frames(ax, x, y, frames):
    """A picture, or up to 6 numbered frames of a clip, enlarged without smoothing inside a square of PICTURE inches."""
    indices = np.linspace(0, len(frames) - 1, min(6, len(frames))).round().astype(int)
    h, w = frames[0].shape[:2]
    fit = lambda across: min(PICTURE / across / w, PICTURE / math.ceil(len(indices) / across) / h)
    across = max(range(len(indices), 0, -1), key=fit)                                   # frames a row: whatever shows them largest
    scale, gap = fit(across), 0.04 * (len(indices) > 1)
    for i, index in enumerate(indices):
        left, top = x + i % across * w * scale, y + i // across * h * scale
        extent = (left, left + w * scale - gap, top + h * scale - gap, top)
        ax.imshow(frames[index], extent=extent, interpolation="nearest", aspect="auto", zorder=3)
        if len(indices) > 1:
            ax.text(left + 0.03, top + 0.03, str(index + 1), fontsize=6.5, va="top", zorder=4, color=INK,
                    bbox=dict(facecolor="white", edgecolor="none", pad=0.8, alpha=0.8))


def paragraph(ax, x, y, right, text, lines, **look):
    """Text wrapped between x and `right`, cut after `lines` lines with an ellipsis; returns the y below it. `$` is a plain character."""
    width = int((right - x) / (0.078 if look.get("weight") == "bold" else 0.069))      # characters of 9 pt DejaVu Sans
    wrapped = [piece for line in text.splitlines() for piece in textwrap.wrap(line, width)]
    if len(wrapped) > lines:
        wrapped = [*wrapped[:lines - 1], wrapped[lines - 1][:width - 2] + " \u2026"]
    for i, line in enumerate(wrapped):
        ax.text(x, y + 0.165 * i, line, va="center", parse_math=False, fontsize=9, **look)
    return y + 0.165 * len(wrapped)


def canvas(width, height):
    """A figure and one axis whose unit is the inch, y downwards."""
    fig = Figure(figsize=(width, height))
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    ax.axis("off")
    return fig, ax


def box(ax, x, y, w, h, face, edge):
    """A rounded box with its top left corner at (x, y)."""
    shape = "round,pad=0,rounding_size=0.08"
    ax.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=shape, fc=face, ec=edge, lw=1.1))


# ------------------------------------------------------------------------------------------------------------ the stack

BLUE, ORANGE = STAGE_COLOURS[:2]
PALE_BLUE, PALE_ORANGE, PALE_GREY = "#eaf1fa", "#fdf1e2", "#f5f6f8"
STAGES = [("tokenizer", "BPE on the world's text"), ("joint pre-training", "text, pictures, clips"),
          ("zero-vision SFT", "text only"), ("joint RL", "text and vision, by ability"), ("long2short", "same accuracy, fewer tokens")]


def stack_picture(path):
    """The whole stack in one diagram: picture or clip -> MoonViT-3D -> merge and projector -> MoE language model, and the stages. Layer and
    expert counts are those of nano."""
    (fig, ax), config = canvas(11.6, 6.5), ModelConfig()
    draw_inputs(ax)
    draw_encoder(ax, config.vision)
    draw_language(ax, config.language)
    draw_stages(ax)
    return save_png(fig, path)


def draw_inputs(ax):
    """A picture, a clip of four frames and a question, at the left edge."""
    thumbnail(ax, 0.45, 0.55, 1.05, 0.45, 1)
    write(ax, 0.975, 1.76, "picture", "any size")
    for frame in (3, 2, 1, 0):
        thumbnail(ax, 0.3 + 0.14 * frame, 2.71 - 0.12 * frame, 0.9, 0.2 + 0.15 * frame, 9 - 2 * frame)
    write(ax, 0.975, 3.78, "clip", "chunks of up to 4 frames")
    step(ax, 0.3, 4.45, 1.5, 0.4, "text: what moves?", ORANGE)
    arrow(ax, (1.6, 1.2), (2.3, 1.5))
    arrow(ax, (1.75, 3.0), (2.3, 2.75))
    arrow(ax, (1.85, 4.65), (5.55, 4.65))


def thumbnail(ax, x, y, size, place, zorder):
    """A tiny scene: a triangle at rest and a disc at height `place` (share of the side), over a patch grid."""
    ax.add_patch(Rectangle((x, y), size, size, fc="#f2efe8", ec=MUTED, lw=1, zorder=zorder))
    for line in range(1, 6):
        for ends in (([x + size * line / 6] * 2, [y, y + size]), ([x, x + size], [y + size * line / 6] * 2)):
            ax.plot(*ends, color="white", lw=0.8, zorder=zorder)
    corners = np.array([(0.12, 0.85), (0.5, 0.85), (0.31, 0.5)]) * size + (x, y)
    ax.add_patch(Polygon(corners, fc=GREEN, zorder=zorder + 1))
    ax.add_patch(Circle((x + 0.7 * size, y + place * size), 0.14 * size, fc=RED, zorder=zorder + 1))


def draw_encoder(ax, cfg):
    """MoonViT-3D with its steps, then merge and projector below it."""
    box(ax, 2.3, 0.3, 2.75, 3.1, PALE_BLUE, BLUE)
    write(ax, 3.675, 0.57, "MoonViT-3D", "one encoder for pictures and clips", colour=BLUE)
    steps = [(1.05, 0.36, f"patches of {cfg.patch} x {cfg.patch} px"), (1.53, 0.36, "+ place (table), + time (sinusoid)"),
             (2.01, 0.66, f"{cfg.layers} x  attention over all frames\n2D RoPE, packed, no mask"), (2.79, 0.36, "mean over time")]
    for y, h, text in steps:
        step(ax, 2.5, y, 2.35, h, text, BLUE)
    step(ax, 2.3, 3.75, 1.2, 0.45, "2 x 2 merge", BLUE)
    step(ax, 3.85, 3.75, 1.2, 0.45, "projector", BLUE)
    arrow(ax, (2.9, 3.4), (2.9, 3.75))
    arrow(ax, (3.5, 3.975), (3.85, 3.975))
    arrow(ax, (5.05, 3.975), (5.55, 3.975))


def draw_language(ax, cfg):
    """The one sequence, read upwards: media (blue) between text (orange); then one MoE layer with the configuration's experts."""
    for i, kind in enumerate("tmmmmtttt"):
        ax.add_patch(Rectangle((5.68, 4.5 - 0.4 * i), 0.3, 0.3, fc=BLUE if kind == "m" else ORANGE, alpha=0.85))
    write(ax, 5.83, 0.57, "one sequence", "media + text")
    arrow(ax, (6.1, 2.7), (6.6, 2.7))
    box(ax, 6.6, 0.3, 4.7, 4.55, PALE_ORANGE, ORANGE)
    write(ax, 8.95, 0.57, "MoE language model", f"Kimi K2's structure, {cfg.layers} layers ({cfg.dense_layers} dense)", ORANGE)
    step(ax, 6.85, 1.1, 4.2, 0.66, "MLA: keys and values from one small latent\nQK-Clip keeps the softmax inputs below tau", ORANGE)
    arrow(ax, (8.95, 1.76), (8.95, 2.1))
    step(ax, 6.85, 2.1, 4.2, 0.44, f"router: sigmoid + selection bias, top {cfg.top_k} of {cfg.experts}", ORANGE)
    draw_experts(ax, 6.85, 3.02, 4.2, cfg)
    arrow(ax, (8.95, 3.85), (8.95, 4.2))
    step(ax, 6.85, 4.2, 4.2, 0.44, "head: the next token", ORANGE)


def draw_experts(ax, x, y, width, cfg):
    """A row of routed experts, the top-k lit, and the shared one that is always on."""
    shown, cell = min(cfg.experts, 16), (width - 1.15) / min(cfg.experts, 16)
    lit = [1 + i * shown // cfg.top_k for i in range(min(cfg.top_k, shown))]
    for i in range(shown):
        ax.add_patch(Rectangle((x + i * cell, y), cell * 0.82, 0.5, fc=ORANGE if i in lit else "white", ec=ORANGE, lw=1))
    for i in lit:
        arrow(ax, (x + (i + 0.41) * cell, 2.54), (x + (i + 0.41) * cell, y))
    write(ax, x + (width - 1.15) / 2, y + 0.66, "", "routed experts")
    ax.add_patch(Rectangle((x + width - 0.85, y), 0.7, 0.5, fc=ORANGE, ec=ORANGE, alpha=0.55))
    arrow(ax, (x + width - 0.5, 2.54), (x + width - 0.5, y))
    write(ax, x + width - 0.5, y + 0.66, "", "shared expert")


def draw_stages(ax):
    """The stages from left to right."""
    for i, (name, what) in enumerate(STAGES):
        x = 0.3 + 2.26 * i
        box(ax, x, 5.35, 1.96, 0.85, PALE_GREY, INK)
        write(ax, x + 0.98, 5.67, name, what)
        if i > 0:
            arrow(ax, (x - 0.3, 5.78), (x, 5.78))


def step(ax, x, y, w, h, text, colour):
    """A white box with centred text."""
    box(ax, x, y, w, h, "white", colour)
    ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=9, color=INK, linespacing=1.35)


def write(ax, x, y, title, note="", colour=INK):
    """A bold title centred at (x, y) and a small note below it."""
    ax.text(x, y, title, ha="center", va="center", fontsize=11, weight="bold", color=colour)
    ax.text(x, y + (0.24 if title else 0), note, ha="center", va="center", fontsize=8.5, color=MUTED)


def arrow(ax, start, end):
    """A thin arrow from start to end, both (x, y)."""
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=10, color=MUTED, lw=1.2, shrinkA=0, shrinkB=0))
