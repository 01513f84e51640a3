"""The released checkpoints answer as their card says, load in any stage, and are small."""
import json
from dataclasses import replace

import numpy as np
import pytest

import sample
from nanokimi import data
from nanokimi.checkpoint import RELEASED, newest_stage
from nanokimi.config import PRESETS
from nanokimi.release import STAGES, card
from nanokimi.rollout import MAX_NEW
from nanokimi.tokenizer import Tokenizer
from nanokimi.world import exam


def test_together_under_24_megabytes():
    assert sum(file.stat().st_size for file in RELEASED.rglob("*") if file.is_file()) < 24e6


@pytest.mark.parametrize("stage", STAGES)
def test_answers_as_recorded(stage):
    recorded = json.loads((RELEASED / "card.json").read_text("utf-8"))
    assert recorded["stages"][stage] == pytest.approx(card(RELEASED, stage, recorded["problems"]), abs=0.1)    # other machines round differently


def test_a_clone_without_a_run_is_served_by_them(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    sample.main(["what is 12 + 5?"])
    said = capsys.readouterr().out
    assert "checkpoints" in said and said.split()[-1] == "17"
    assert newest_stage(RELEASED).name == "rl", "of a clone's files none is newer: the card's order counts"


def test_every_program_fits_into_a_turn_and_a_row():
    """A turn that was too short once cut every maze's program off: it looked as if mazes could not be learned."""
    tokenizer = Tokenizer.load(RELEASED / "tokenizer", 8)
    for row in ("tool_text", "tool_picture"):
        for problem in exam.exam(row, "val", 60):
            messages, _ = data.chat_messages(replace(problem, context=()), np.random.default_rng(0))
            assert sum(tokenizer.render_chat(messages[:2]).mask) <= MAX_NEW, problem.question
            words = replace(problem, context=problem.context if row == "tool_text" else ())
            parts = data.document([words], np.random.default_rng(0), PRESETS["nano"].model.vision)
            assert len(tokenizer.render_document(parts).ids) <= PRESETS["nano"].length, f"no row of pre-training has room for {problem.question}"
