"""Figures: every one is written, small, and survives missing keys and hostile text; Wilson's interval against known values."""
import json

import numpy as np
import pytest
from PIL import Image

from nanokimi import evaluate
from nanokimi.report import answers_picture, plot_run, running_mean, stack_picture, stage_spans, wilson_interval


def check_png(path, max_kb=150):
    assert path.stat().st_size < max_kb * 1024
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert tuple(picture[0, 0]) == (255, 255, 255)                             # a white card, on a dark page too
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10                 # something was drawn


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_plot_run_draws_every_figure(tmp_path):
    rows = []
    for stage, steps in (("pre-training", 40), ("sft", 10)):
        for step in range(1, steps + 1):
            rows.append({"stage": stage, "step": step, "loss": 5 / step, "tokens": 1000 * step})
        rows.append({"stage": stage, "step": steps, "val": {"caption": 0.9, "video": 0.1 * len(rows) / 60}})
    rows.append({"stage": "sft", "step": 10, "load": {"text": [[1, 2, 3, 0]] * 3, "image": [[5, 5, 5, 5]] * 3, "video": [[0, 0, 0, 0]] * 3}})
    paths = plot_run(write_rows(tmp_path / "metrics.jsonl", rows), tmp_path / "figures")
    assert [path.name for path in paths] == ["loss.png", "accuracy.png", "load.png"]
    [check_png(path) for path in paths]


def test_bands_are_by_step_and_know_no_minutes(tmp_path):
    for run, slow, better in (("a", 1, 0.0), ("b", 50, 0.5)):
        (tmp_path / run).mkdir()
        write_rows(tmp_path / run / "metrics.jsonl", [{"stage": "pretrain", "step": s, "seconds": s * slow, "loss": 200 - s - better,
                                                       **({"val": {"name": s / 100 + better}} if s % 25 == 0 else {})} for s in range(1, 201)])
    early, late = evaluate.bands([tmp_path / "a", tmp_path / "b"], (0.25, 1.0))
    assert early == {"share": 0.25, "steps": [50, 50], "loss": [174.0, 174.5], "val": {"name": [0.5, 1.0]}}
    assert late["steps"] == [200, 200] and late["loss"] == [24.0, 24.5] and late["val"] == {"name": [2.0, 2.5]}


def test_plot_run_leaves_out_what_has_no_data(tmp_path):
    rows = [{"stage": "sft", "step": 1, "loss": 1.0}]
    assert [path.name for path in plot_run(write_rows(tmp_path / "m.jsonl", rows), tmp_path)] == ["loss.png"]
    assert plot_run(write_rows(tmp_path / "m.jsonl", [{"stage": "sft", "step": 1}]), tmp_path) == []
    with pytest.raises(ValueError, match="no rows"):
        plot_run(write_rows(tmp_path / "m.jsonl", []), tmp_path)


def test_stages_follow_each_other():
    spans = stage_spans([{"stage": "a", "step": 10}, {"stage": "b", "step": 3}, {"stage": "a", "step": 20}])
    assert [(start, end) for start, end, _ in spans.values()] == [(0, 20), (20, 23)]


def test_running_mean_keeps_length_and_mean_of_a_constant():
    assert np.allclose(running_mean(np.full(101, 3.0)), 3.0)
    assert len(running_mean(np.array([1.0]))) == 1
    assert running_mean(np.arange(100.0), share=0.1)[50] == pytest.approx(50)


def test_answers_picture(tmp_path):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (32, 48, 3), dtype=np.uint8) for _ in range(9)]
    item = {"frames": [], "question": "What costs $5 and $x_{?", "thinking": None, "answer": "", "expected": "tea", "correct": False}
    items = [item, {**item, "frames": frames[:1], "thinking": "Long. " * 200, "correct": True}, {**item, "frames": frames, "answer": "y" * 300}]
    check_png(answers_picture(items, tmp_path / "answers.png"))
    with pytest.raises(AssertionError, match="at least one"):
        answers_picture([], tmp_path / "none.png")


def test_stack_picture(tmp_path):
    check_png(stack_picture(tmp_path / "stack.png"))


def test_wilson_interval():
    low, high = wilson_interval(81, 263)                                       # Newcombe 1998, Table I: 0.2553 to 0.3662
    assert low == pytest.approx(0.2553, abs=1e-4) and high == pytest.approx(0.3662, abs=1e-4)
    assert wilson_interval(0, 20)[0] == 0 and wilson_interval(0, 20)[1] == pytest.approx(0.1611, abs=1e-4)
    assert all(wilson_interval(n, n)[1] == 1.0 and wilson_interval(0, n)[0] == 0.0 for n in range(1, 60)), "rounding"
    with pytest.raises(AssertionError):
        wilson_interval(0, 0)
