"""What several test files use: a run that nobody trained, the log of one, waiting for one."""
import json
import time
from functools import lru_cache
from pathlib import Path

import torch

from nanokimi import data
from nanokimi.config import PRESETS
from nanokimi.model import NanoKimi, save
from nanokimi.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
MICRO = PRESETS["micro"]


@lru_cache
def micro_tokenizer():
    """A real tokenizer of the micro preset, trained once a test process. Read only."""
    return Tokenizer.train(data.corpus(300), MICRO.model.language.vocab, MICRO.model.vision.patch)


def untrained(run, *stages):
    """A run of the micro preset with random weights, the same in every stage; returns it."""
    micro_tokenizer().save(run / "tokenizer")
    torch.manual_seed(0)
    model = NanoKimi(MICRO.model, micro_tokenizer().media_pad)
    for stage in stages:
        save(model, run / stage)
    return run


def rows(run):
    """What a run has logged, [] before there is anything."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def wait_for_step(run, step, seconds=120):
    """Until a run has logged as many steps."""
    for _ in range(20 * seconds):
        if len(rows(run)) >= step:
            return
        time.sleep(0.05)
    raise AssertionError("training did not get that far")
