"""The arithmetic behind README.md's tables: every row from answers made by hand, and what is asked how."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nanokimi import data, evaluate, gains
from nanokimi.config import LanguageConfig, ModelConfig, VisionConfig
from nanokimi.engine import Response
from nanokimi.model import NanoKimi
from nanokimi.tokenizer import Tokenizer
from nanokimi.world import exam


def said(answer="x", thinking=" why", tools=(), well_formed=True, tokens=3):
    return Response(ids=[0] * tokens, sampled=[True] * tokens, tools=list(tools), stop="end",
                    parsed={"content": f" {answer}", "thinking": thinking, "well_formed": well_formed, "tool_calls": []})


def test_a_format_is_a_closed_thought_and_an_answer():
    responses = [said(), said(thinking=None), said(thinking="  "), said(answer=" "), said(well_formed=False)]
    assert evaluate.format_rate(responses) == 1 / 5


def test_a_valid_tool_call_ran_without_an_error():
    assert evaluate.tool_rate([said(tools=[True]), said(tools=[True, True]), said(), said(tools=[False]), said(tools=[True, False])]) == 2 / 5


def test_a_x_b_resamples_countries():
    """Ten problems on one country that is always right, ten on one that never is: by problems the interval would be narrow."""
    problems = [SimpleNamespace(meta={"country": "a" if i < 10 else "b"}, answer="yes", verifier="exact") for i in range(20)]
    rows = evaluate.clustered("row", problems, ["yes"] * 10 + ["no"] * 10, known=0.8)
    assert rows == {"row": 0.5 / 0.8, "row_low": 0.0, "row_high": 1 / 0.8} and evaluate.ratio(0.5, 0.0) == 0.0


def test_capitals_are_asked_again_and_again():
    """Greedy answers to the same question are one piece of evidence."""
    assert evaluate.asked_in("capital", 500) == 48 and evaluate.asked_in("capital", 20) == 20
    assert evaluate.asked_in("name_acc", 500) == 500 and evaluate.asked_in("video_acc", 500) == 1500 and evaluate.asked_in("tool_maze", 500) is None


# ---- the report card -------------------------------------------------------------------------------------------------------------------

RIGHT = {"caption": 0.75, "count": 0.5, "direction": 0.75, "order": 0.25}         # of four problems; other rows: all


@pytest.fixture
def stubbed(monkeypatch):
    """A model that answers RIGHT of each row's four problems, none of them blind, and one more of what it counts aloud. Notes what it was asked."""
    asked, exams = [], {row: exam.exam(row, "val", 4) for row in exam.ROWS}
    monkeypatch.setattr(exam, "exam", lambda row, split, number: exams[row])
    for control in ("blind", "one_frame", "shuffled"):
        monkeypatch.setattr(exam, control, lambda problems, control=control: [(control, problem) for problem in problems])
    for measure in ("mean_correct", "mean_score", "digit_accuracy"):
        monkeypatch.setattr(evaluate, measure, lambda problems, answers: float(np.mean(answers)))
    monkeypatch.setattr(evaluate, "BASE", {row: (name, lambda problems, answers: float(np.mean(answers))) for row, (name, _) in evaluate.BASE.items()})

    def answers(problems, more=0.0):
        control, row = (problems[0][0], None) if isinstance(problems[0], tuple) else (None, next(row for row, e in exams.items() if e is problems))
        share = {"blind": 0.0, "one_frame": 0.25, "shuffled": 0.5}.get(control, min(1.0, RIGHT.get(row, 1.0) + more))
        return row or control, [float(i < 4 * share) for i in range(4)]

    def ask_document(engine, problems, think=False):
        row, hits = answers(problems, 0.25 * think)
        asked.append(("aloud" if think else "at once", row))
        return hits

    def ask_chat(engine, problems, tools=False, max_new=0):
        row, hits = answers(problems)
        asked.append(("tools" if tools else "chat", row))
        return [SimpleNamespace(hit=hit, ids=[0] * 7, tools=[row == "tool_picture"] * tools, parsed={"content": "x", "thinking": "y", "well_formed": True}) for hit in hits]
    monkeypatch.setattr(evaluate, "ask_document", ask_document)
    monkeypatch.setattr(evaluate, "ask_chat", ask_chat)
    monkeypatch.setattr(evaluate, "content_of", lambda response: response.hit)
    monkeypatch.setattr(evaluate, "clustered", lambda name, problems, answers, known: {name: known})
    return asked


def test_rows_of_the_base_model(stubbed):
    rows = evaluate.base_rows(None, "val", 4)
    assert rows["caption_f1"] == 0.75 and rows["count_direct"] == 0.5 and rows["count_exact"] == 0.75, "counting is asked aloud"
    assert ("aloud", "count") in stubbed and ("at once", "count") in stubbed and rows["count_blind"] == 0.0
    assert rows["video_acc"] == pytest.approx((0.75 + 1 + 0.25) / 3) and rows["nplus1_name_ratio"] == 1.0
    assert (rows["video_blind"], rows["video_one_frame"], rows["video_shuffled"]) == (0.0, 0.25, 0.5)
    assert [how for how, row in stubbed if row == "chat_picture"] == ["chat"], "zv_format_before is asked in chat"


def test_rows_of_the_cold_start(stubbed):
    rows = evaluate.chat_rows(None, "val", 4, known=0.5)
    assert rows["zv_acc"] == 1.0 and rows["zv_acc_blind"] == 0.0 and rows["zv_margin"] == 1.0 and rows["zv_response_tokens"] == 7
    assert (rows["zv_tool_rate_needed"], rows["zv_tool_rate_other"], rows["zv_tool_gap"]) == (1.0, 0.0, 1.0)
    assert ("tools", "tool_text") in stubbed and ("chat", "arithmetic") in stubbed and rows["axb_capital_thinking"] == 0.5
    assert rows["caption_f1_after"] == 0.75 and ("at once", "caption") in stubbed


def test_what_a_cold_start_costs_is_before_less_after(monkeypatch, tmp_path):
    for name in ("need", "load", "engine_of"):
        monkeypatch.setattr(evaluate, name, lambda *_: None)
    monkeypatch.setattr(evaluate, "base_rows", lambda *_: {"flag_name": 0.5, "capital": 0.8, "caption_f1": 0.9})
    monkeypatch.setattr(evaluate, "chat_rows", lambda engine, split, number, known: {"caption_f1_after": 0.8, "known": known})
    rows = evaluate.report_card(tmp_path, "val", 4)
    assert rows["zv_caption_drop"] == pytest.approx(0.1) and rows["known"] == pytest.approx(0.4)


# ---- while training --------------------------------------------------------------------------------------------------------------------

def test_quick_counts_a_problem_whose_every_token_is_the_first_choice(monkeypatch):
    """A model that knows the right tokens of two documents of three, and all but one token of the third."""
    tokenizer = Tokenizer.train(data.corpus(200), 600)
    torch.manual_seed(0)
    language = LanguageConfig(vocab=600, dim=32, layers=2, heads=2, q_lora=24, kv_lora=16, nope=8, rope=8, v_dim=8, dense_ffn=48, experts=4, expert_ffn=24, context=512)
    model = NanoKimi(ModelConfig(VisionConfig(dim=32, layers=1, heads=2, mlp=48), language), tokenizer.media_pad)
    documents = evaluate.quick_documents("pretrain", tokenizer, model.config.vision, 3)
    documents = [item for item in documents if item[0] in ("capital", "name", "direction")]
    wrong = {}

    class Knowing(torch.nn.Module):
        def forward(self, hidden):                                       # (n, d) of the learned tokens, in reading order
            logits = torch.nn.functional.one_hot(wrong["targets"], 600).float()
            logits[wrong["at"]] = logits[wrong["at"]].roll(1, -1)
            return logits
    to_batch = data.to_batch

    def spied(*args):
        batch = to_batch(*args)
        learned = batch.targets != evaluate.NO_LOSS
        row = next(i for i, (name, _) in enumerate(sorted(documents, key=lambda item: len(item[1].ids))) if name == "name")
        wrong["targets"], wrong["at"] = batch.targets[learned], int(learned[:row].sum())
        return batch
    model.language.head = Knowing()
    fabric = SimpleNamespace(device="cpu", autocast=torch.no_grad, all_reduce=lambda x, reduce_op: x)
    monkeypatch.setattr(data, "to_batch", spied)
    out = evaluate.quick(model, "pretrain", documents, fabric)
    assert out["val"] == {"name": pytest.approx(2 / 3), "direction": 1.0, "capital": 1.0}
    media = {kind: sum(clip.tokens(8) for _, doc in documents for clip in doc.clips if clip.kind == kind) for kind in ("image", "video")}
    top_k = language.top_k
    assert {kind: sum(out["load"][kind][0]) / top_k for kind in media} == media, "each media token chooses top_k experts"
    text = sum(len(doc.ids) for _, doc in documents) - sum(media.values())
    assert sum(out["load"]["text"][0]) / top_k == text and len(out["load"]["text"]) == 1


# ---- what RL gained --------------------------------------------------------------------------------------------------------------------

def test_gains_are_of_what_was_missing():
    card = lambda visual, blind, tokens, tool, eyes: {"visual": visual, "visual_blind": blind, "visual_tokens": tokens, "tool_solved": tool, "eyes_solved": eyes}
    rows = gains.gains({"sft": card(0.6, 0.2, 30, 0.5, 0.1), "rl": card(0.8, 0.3, 20, 0.7, 0.2), "short": card(0.79, 0.3, 15, 0.7, 0.2)})
    assert rows["rl_visual_gain"] == pytest.approx(0.5) and (rows["rl_visual_before"], rows["rl_visual_after"]) == (0.6, 0.8)
    assert rows["rl_visual_margin_change"] == pytest.approx(0.5 - 0.4) and (rows["rl_tool_solved"], rows["rl_tool_by_eye"]) == (0.7, 0.2)
    assert rows["rl_saving"] == pytest.approx(0.25) and rows["rl_saving_drop"] == pytest.approx(0.01) and rows["short_visual_tokens"] == 15


def test_the_tool_arm_has_the_tool(monkeypatch):
    monkeypatch.setattr(gains, "chat_answers", lambda engine, problems, tools: [p.answer if tools else "no" for p in problems])
    rows = gains.tool_rows(None, "val", 60)
    assert rows["tool_solved"] == 1.0 and rows["eyes_solved"] == 0.0
    poses = {name.partition("_")[2] for name in rows} - {"solved"}
    assert poses == set(gains.POSES) and all(rows[f"tool_{pose}"] == 1.0 and rows[f"eyes_{pose}"] == 0.0 for pose in poses)
