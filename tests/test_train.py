"""train.py as a person runs it: kill it, stop it, run it on one process or two; the result is the same."""
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, rows, wait_for_step
from safetensors.torch import load_file

import train
from nanokimi.config import PRESETS
from nanokimi.model import Batch, NanoKimi, choose_kernel
from nanokimi.muon import MuonClip, wsd
from nanokimi.tokenizer import Tokenizer

STEPS = 16

PLAIN = ("--stage", "pretrain", "--threads", "1", "--devices", "1", "--precision", "32-true")
DEFAULT = ("--stage", "pretrain", "--threads", "2", "--devices", "2")                     # what train.py chooses on two cores: bf16 where that is fast


def start(run, *more, mode=PLAIN):
    command = [sys.executable, "train.py", "--preset", "micro", "--steps", str(STEPS), "--save-every", "0", "--run", str(run), *mode, *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def finish(run, *more, mode=PLAIN):
    process = start(run, *more, mode=mode)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    finish(run)
    return run


def assert_same(run, other, stage="pretrain"):
    """Bit by bit: every weight, and every logged number but the seconds."""
    a, b = (load_file(r / stage / "model.safetensors") for r in (run, other))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    strip = lambda r: [{k: v for k, v in row.items() if k != "seconds"} for row in rows(r)]
    assert strip(run) == strip(other)


@pytest.mark.parametrize("how, at", [(signal.SIGKILL, 3), (signal.SIGKILL, 9), (signal.SIGINT, 6), (signal.SIGTERM, 6)])
def test_interrupted_and_continued_equals_uninterrupted(tmp_path, uninterrupted, how, at):
    run = tmp_path / "run"
    process = start(run)
    wait_for_step(run, at)
    process.send_signal(how) if how == signal.SIGINT else os.killpg(process.pid, how)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0, "it finished before it was interrupted"
    if how != signal.SIGKILL:
        assert process.returncode == 130 and "goes on from here" in output and "Traceback" not in output
    assert not (run / "pretrain" / "model.safetensors").exists()
    finish(run)
    assert_same(run, uninterrupted)


def test_two_processes_killed_and_continued_equal_uninterrupted(tmp_path):
    """The same for what a plain `python train.py` does on two cores."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    finish(whole, mode=DEFAULT)
    process = start(run, mode=DEFAULT)
    wait_for_step(run, 7)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (run / "pretrain" / "model.safetensors").exists()
    finish(run, mode=DEFAULT)
    assert_same(run, whole)


def test_a_cold_start_killed_and_continued_equals_uninterrupted(tmp_path, uninterrupted):
    whole, run = (shutil.copytree(uninterrupted, tmp_path / name) for name in ("whole", "run"))
    finish(whole, "--stage", "sft")
    process = start(run, "--stage", "sft")
    wait_for_step(run, STEPS + 4)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (run / "sft" / "model.safetensors").exists()
    finish(run, "--stage", "sft")
    assert_same(run, whole, "sft")


def test_a_resumed_optimizer_is_where_the_model_is(tmp_path, uninterrupted, monkeypatch):
    """On a GPU: state is loaded beside its parameters, so these must be there first. A device without contents stands in for it."""
    fabric, seen = SimpleNamespace(device=torch.device("meta"), global_rank=0, world_size=1), []

    def resume(folder, model, optimizer):
        seen.append({p.device for p in model.parameters()} | {p.device for group in optimizer.param_groups for p in group["params"]})
        raise KeyboardInterrupt
    monkeypatch.setattr(train.checkpoint, "resume", resume)
    settings = {"seed": 0, "steps": 4, "precision": "32-true", "compile": False}
    tokenizer = Tokenizer.load(uninterrupted / "tokenizer", 8)
    with pytest.raises(KeyboardInterrupt):
        train.train_stage("pretrain", fabric, PRESETS["micro"], settings, tokenizer, tmp_path, None, 60)
    assert seen == [{fabric.device}]


def test_cores_may_be_others_than_at_the_start(tmp_path):
    args = SimpleNamespace(preset="micro", seed=0, minutes=None, steps=3, documents=None, precision="32-true", compile=False, threads=2, devices=1)
    threads = [train.plan.settle(tmp_path, SimpleNamespace(**vars(args) | {"threads": given}))["threads"] for given in (2, None, 1, None)]
    assert threads == [2, 2, 1, 2]


def test_an_update_follows_the_schedule_clips_and_balances():
    """Everything between gradients and the next step: learning rate, clipped gradients, QK-Clip, balance until the decay."""
    preset = replace(PRESETS["micro"], qk_clip=0.05, clip_grad=1e-3, warmup=4)
    torch.manual_seed(0)
    model = NanoKimi(preset.model, 5).train()
    choose_kernel(model, "cpu")
    ids = torch.randint(6, preset.model.language.vocab, (4, 32))
    batch = Batch(ids, ids.roll(-1, 1), torch.arange(32).expand(4, 32), torch.ones_like(ids))
    optimizer = MuonClip(model.named_parameters(), lr=preset.lr, ns_dtype=torch.float32)
    step_of, norms = optimizer.step, []
    optimizer.step = lambda: norms.append(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()) or step_of()
    biases = lambda: torch.cat([layer.moe.router.e_score_correction_bias.clone() for layer in model.language.layers if layer.moe is not None])
    for step, factor, balances in ((0, 0.25, True), (3, 1.0, True), (10, 1.0, True), (19, wsd(19, 20, 4, preset.decay_share), False)):
        before = biases()
        model.loss(batch)[0].backward()
        row = train.update(model, optimizer, preset, step, 20)
        assert row["lr"] == pytest.approx(preset.lr * factor) and row["grad_norm"] > 1e-3 >= norms[-1] * 0.999
        assert torch.equal(before, biases()) != balances, "the balance moves until the learning rate decays"
        assert all(p.grad is None for p in model.parameters()), "gradients are used up"
    for group in optimizer.param_groups:
        group["base_lr"] = 0.0                                           # from here on QK-Clip alone moves weights
    for layer in model.language.layers:
        layer.attn.q_b.weight.data *= 1e3
    clips = []
    for _ in range(4):                                                   # heads of one layer change what the next one reads
        model.loss(batch)[0].backward()
        clips.append(train.update(model, optimizer, preset, 19, 20))
    assert clips[0]["clip_rate"] > 0 and clips[-1]["max_logit"] <= 1.001 * preset.qk_clip


def test_two_processes_equal_one(tmp_path, uninterrupted):
    """Same shards, gradients summed: the same curve up to float addition order."""
    run = tmp_path / "two"
    finish(run, "--devices", "2", "--threads", "2")
    one, two = rows(uninterrupted), rows(run)
    assert abs(one[0]["loss"] - two[0]["loss"]) < 1e-5 and one[-1]["tokens"] == two[-1]["tokens"]
    assert abs(one[0]["grad_norm"] - two[0]["grad_norm"]) < 1e-4
    assert abs(one[0]["max_logit"] - two[0]["max_logit"]) < 1e-4, "the maximum must be taken over both processes"
    assert abs(one[-1]["loss"] - two[-1]["loss"]) < 0.01
    bias = [load_file(r / "pretrain" / "model.safetensors")["language.layers.1.moe.router.e_score_correction_bias"] for r in (uninterrupted, run)]
    assert bias[0].any() and (bias[0] - bias[1]).abs().max() < 2.1e-3, "loads must be summed over both processes before the balancing step"


def test_ctrl_c_reaches_two_processes_and_both_stop_cleanly(tmp_path):
    """As in a terminal: the signal goes to the whole group, data workers included, between two checkpoints."""
    run = tmp_path / "run"
    process = start(run, "--devices", "2", "--threads", "2", "--save-every", "1000", "--steps", "400")
    wait_for_step(run, 8)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and output.count("goes on from here") == 1 and "Traceback" not in output
    saved = next((run / "pretrain").glob("step-*"))
    assert json.loads((saved / "state.json").read_text("utf-8"))["step"] == rows(run)[-1]["step"]


def test_the_loss_falls(uninterrupted):
    losses = [row["loss"] for row in rows(uninterrupted)]
    assert losses[-1] < losses[0] - 0.5
    assert {"max_logit", "clip_rate", "grad_norm", "lr"} <= rows(uninterrupted)[-1].keys()
    assert "load" in rows(uninterrupted)[-1] and "val" in rows(uninterrupted)[-1]


@pytest.fixture(scope="module")
def main_job(tmp_path_factory):
    """Everything that `python train.py` does, at micro size."""
    run = tmp_path_factory.mktemp("runs") / "micro"
    command = [sys.executable, "train.py", "--preset", "micro", "--steps", "12", "--threads", "1", "--run", str(run)]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert out.returncode == 0, out.stdout + out.stderr
    return run, out.stdout


def test_the_main_job_ends_with_a_report_card_and_pictures(main_job):
    run, output = main_job
    assert "report card" in output and "0.0% pictures, 0.0% clips" in " ".join(output.split("sft:")[1].split())
    for name in ("answers.png", "loss.png", "accuracy.png", "load.png", "report.json", "sft/model.safetensors", "tokenizer/tokenizer.tiktoken"):
        assert (run / name).stat().st_size > 500, name
    card = json.loads((run / "report.json").read_text("utf-8"))
    assert card["split"] == "val" and {"caption_f1", "video_acc", "zv_acc", "text_acc", "zv_tool_gap"} <= card["rows"].keys()
    assert not (run / "test_reads.jsonl").exists(), "train.py must not read the test split"


def test_the_cold_start_begins_with_new_embeddings_for_the_tokens_of_chat(main_job):
    run, _ = main_job
    chat = Tokenizer.load(run / "tokenizer", 8).chat_ids
    before, after = (load_file(run / stage / "model.safetensors")["language.embed.weight"].norm(dim=1) for stage in ("pretrain", "sft"))
    assert before[chat].median() < before.median() < after[chat].median() / 1.5


def test_doing_it_again_does_nothing_again(main_job):
    run, _ = main_job
    before = (run / "sft" / "model.safetensors").stat().st_mtime
    command = [sys.executable, "train.py", "--preset", "micro", "--steps", "12", "--threads", "1", "--run", str(run)]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=600).returncode == 0
    assert (run / "sft" / "model.safetensors").stat().st_mtime == before


def test_evaluate_writes_results_that_name_their_origin(main_job, tmp_path):
    run = shutil.copytree(main_job[0], tmp_path / "run")
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "nanokimi.evaluate", "--split", "test", "--problems", "4", "--threads", "1", "--out", str(out), str(run), str(run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text("utf-8"))
    assert {"command", "commit", "machine", "seeds", "minutes", "rows"} <= content.keys() and content["seeds"] == [0, 0]
    assert all(row["sd"] == 0 for row in content["rows"]), "the exam or greedy decoding is not deterministic"
    asked = {row["name"]: row["problems"] for row in content["rows"]}
    assert asked["caption_f1"] == 4 and asked["video_acc"] == 12 and asked.get("caption_f1_unseen_pair") is None, "what stands behind a row"
    assert len((run / "test_reads.jsonl").read_text("utf-8").splitlines()) == 2


def test_sample_answers_about_a_picture(main_job, tmp_path):
    from PIL import Image
    run, _ = main_job
    Image.new("RGB", (40, 60), "red").save(tmp_path / "red.png")
    command = [sys.executable, "sample.py", "what is in the picture?", "--image", str(tmp_path / "red.png"), "--run", str(run), "--max-new", "8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
