"""Long context: YaRN is transformers' YaRN, long documents need their length and fit their rows, the stage runs end to end."""
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nanokimi import data, needles, plan, released
from nanokimi.checkpoint import newest_stage
from nanokimi.errors import BadInput
from nanokimi.config import LONGER, PRESETS, LanguageConfig, ModelConfig, VisionConfig
from nanokimi.language import Cache, mscale, rope_1d
from nanokimi.model import NanoKimi, load, with_language
from nanokimi.tokenizer import Rendered, Tokenizer
from nanokimi.world import long
from nanokimi.world.verify import correct

ROOT = Path(__file__).parent.parent
CFG = ModelConfig(VisionConfig(patch=4, dim=32, layers=1, heads=2, mlp=48, pos_grid=6),
                  LanguageConfig(vocab=64, dim=32, layers=3, heads=2, q_lora=24, kv_lora=16, nope=8, rope=16, v_dim=12, dense_ffn=48,
                                 experts=8, top_k=2, expert_ffn=24, init_std=0.2))
K25 = LanguageConfig(rope=64, rope_theta=50000.0, rope_factor=64.0, rope_original=4096, context=262144)       # K2.5 config.json


def model_with(**yarn):
    torch.manual_seed(0)
    return NanoKimi(replace(CFG, language=replace(CFG.language, **yarn)), 60).eval()


# ---- YaRN ------------------------------------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_the_released_preset_has_the_released_context():
    ours = PRESETS["k2.5"].model.language
    assert all(getattr(ours, name) == getattr(K25, name) for name in ("rope", "rope_theta", "rope_factor", "rope_original", "context"))


@pytest.mark.parametrize("yarn", [{}, dict(rope_factor=4.0, rope_original=48, context=192),
                                  dict(rope_factor=32.0, rope_original=4096, context=131072),
                                  dict(rope_factor=64.0, rope_original=4096, context=262144)], ids=["plain", "4x", "K2", "K2.5"])
def test_logits_equal_transformers(yarn):
    """Whole logits, beyond the original context where that is short, and at positions from 100,000 on for K2's lengths."""
    transformers = pytest.importorskip("transformers", minversion="5.20")
    ours = model_with(**yarn)
    config = transformers.DeepseekV3Config(**released.deepseek_v3_config(ours.config.language))
    tensors = released.to_deepseek_v3(ours.state_dict(), ours.config)
    theirs, info = transformers.DeepseekV3ForCausalLM.from_pretrained(None, config=config, state_dict=tensors, output_loading_info=True)
    assert not any(info.values()), info
    ids, start = torch.randint(0, 60, (2, 150)), 0 if yarn.get("rope_original", 0) < 4096 else 100_000
    positions = torch.arange(start, start + 150).expand(2, 150)
    expected = theirs.eval()(ids, position_ids=positions).logits
    logits = ours.language.head(ours.language(ours.embed(ids), positions))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    if yarn:                                                            # the test can tell: without YaRN the logits are others
        plain = with_language(ours, rope_factor=1.0)
        assert (plain.language.head(plain.language(plain.embed(ids), positions)) - expected).abs().max() > 0.01


def test_the_released_models_frequencies_and_scale():
    """K2.5's own sizes: transformers' inverse frequencies and softmax scale from config.json's rope_scaling, as it is published."""
    transformers = pytest.importorskip("transformers", minversion="5.20")
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding, yarn_apply_mscale
    scaling = {"type": "yarn", "factor": 64.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0,
               "mscale_all_dim": 1.0}
    config = transformers.DeepseekV3Config(qk_rope_head_dim=64, max_position_embeddings=262144, rope_theta=50000.0, rope_scaling=scaling)
    rope = DeepseekV3RotaryEmbedding(config)
    ours = rope_1d(torch.ones(1, 1), K25.rope, K25.rope_theta, K25.rope_factor, K25.rope_original).angle().flatten()
    torch.testing.assert_close(ours, rope.inv_freq, rtol=1e-6, atol=0)
    assert rope.attention_scaling == 1.0
    assert mscale(64.0) ** 2 == pytest.approx(yarn_apply_mscale(config.rope_parameters, 1.0))
    assert released.rope_parameters(K25).items() <= config.rope_parameters.items()


@torch.no_grad()
def test_cached_equals_uncached_beyond_the_original_length():
    """Prefill, then token by token through the compressed cache, from inside the original 24 tokens to four times as many."""
    model = model_with(rope_factor=4.0, rope_original=24, context=96)
    x, positions = model.embed(torch.randint(0, 60, (2, 96))), torch.arange(96).expand(2, 96)
    whole = model.language(x, positions)
    cache, parts = Cache(model.config.language, 2, 96, "cpu"), []
    for start, end in [(0, 20), *((i, i + 1) for i in range(20, 96))]:
        parts.append(model.language(x[:, start:end], positions[:, start:end], None, cache))
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


def test_configurations_carry_yarn_both_ways():
    """Our settings -> transformers' configuration -> ours; what YaRN's parameters say otherwise, or leave unsaid, is refused."""
    cfg = model_with(rope_factor=4.0, rope_original=48, context=192).config
    images, frames = {"max_patches": 144, "size": {"max_height": 64}}, {"max_patches": 144}
    config = json.loads(json.dumps(released.kimi_k25_config(cfg, 60)))
    assert released.from_config(config, images, frames) == cfg
    rope = config["text_config"]["rope_parameters"]
    for change, sentence in [({"beta_fast": 1.0}, "beta_fast is 1.0"), ({"mscale_all_dim": 0.707}, "mscale_all_dim is 0.707"),
                             ({"truncate": False}, "truncate stands on one side"), ({"rope_type": "linear"}, "rope_type is linear")]:
        config["text_config"]["rope_parameters"] = rope | change
        with pytest.raises(ValueError, match=sentence):
            released.from_config(config, images, frames)
    config["text_config"]["rope_parameters"] = {name: value for name, value in rope.items() if name != "mscale"}
    with pytest.raises(ValueError, match="mscale stands on one side"):
        released.from_config(config, images, frames)


# ---- documents and needles -------------------------------------------------------------------------------------------------------------

VISION, LENGTH = PRESETS["micro"].model.vision, 768


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(data.corpus(400), 768, VISION.patch)


@pytest.mark.parametrize("kind", data.LONG)
def test_long_documents_need_their_length_and_fit_it(tokenizer, kind):
    """At most a row, mostly longer than pre-training's; the question comes last and its answer is all that is learned."""
    documents = [data.longctx_document(np.random.default_rng(i), tokenizer, VISION, LENGTH, kind)[1] for i in range(12)]
    lengths = [len(doc.ids) for doc in documents]
    assert max(lengths) <= LENGTH and np.mean(lengths) > 0.5 * LENGTH and max(lengths) > 0.85 * LENGTH
    for doc in documents:
        assert doc.ids.count(tokenizer.media_pad) == sum(clip.tokens(VISION.patch) for clip in doc.clips)
        first = doc.mask.index(True)
        assert tokenizer.decode(doc.ids[:first]).endswith("answer:") and first > LENGTH // LONGER // 2
        assert not any(learn and i == tokenizer.media_pad for i, learn in zip(doc.ids, doc.mask))


def test_the_right_answer_stands_where_the_question_says():
    """Problems checked by reading their own context, not by the code that wrote them."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        for p in long.haystack_problems(rng, "train", 60) + long.pages_problems(rng, "train", 20):
            lines = p.context[0].split("\n")
            who = re.match(r"what is the code of the (.+)\?|what is in (.+)\?", p.question)
            said = [line for line in lines if line.startswith(f"the code of the {who[1]} is ") or who[2]
                    and line.startswith(f"{who[2].replace('the', 'a')} shows from left to right: ")]
            assert len(said) == 1 and said[0].rstrip(".").endswith(f" {p.answer}"), (p.question, said)


@pytest.mark.parametrize("depth", [0, 0.5, 1])
def test_needles_lie_at_their_depth(depth):
    """The text's needle at that share of its words; the clip's in that chunk, all others alike."""
    for kind in ("scene", "code"):
        p = long.NEEDLES[kind](np.random.default_rng(0), "val", depth, 200)
        start = p.context[0].index({"scene": "a picture shows", "code": "the code of"}[kind])
        words, before = p.context[0].split(), p.context[0][:start].split()
        assert 200 < len(words) and len(before) == 200 * depth and correct(p, p.answer) and not correct(p, "x")
    p = long.clip_needle(np.random.default_rng(0), "val", depth, 9)
    chunks = p.context[0].frames.reshape(9, long.CHUNK, long.SIDE, long.SIDE, 3)
    assert (chunks == chunks[:, :1]).all() and p.answer in long.IN_CLIPS
    odd = [i for i in range(9) if sum((chunks[i] != chunks[j]).any() for j in range(9)) > 4]
    assert odd == [round(8 * depth)]


def test_splits_have_needles_of_their_own():
    rng = np.random.default_rng(0)
    for make in (long.code, long.scene):
        asked = {split: {str(make(rng, split)[1 if make is long.code else 2]) for _ in range(150)} for split in ("train", "val", "test")}
        assert not asked["train"] & asked["val"] and not asked["train"] & asked["test"] and not asked["val"] & asked["test"]


def test_needles_fill_their_length_with_room_for_the_answer(tokenizer):
    for kind in long.NEEDLES:
        for length in (96, 192, 768):
            problems = needles.needles(kind, "val", 3, 0.5, length, tokenizer, VISION)
            sizes = [len(needles.prompt(p, tokenizer, VISION).ids) for p in problems]
            assert all(0.75 * length - needles.ANSWER < size <= length - needles.ANSWER for size in sizes), (kind, length, sizes)


def test_a_document_that_cannot_fit_is_an_error():
    render = lambda size: Rendered([0] * (10 + 3 * size))
    assert data.longest(render, 100) in (29, 30) and data.longest(render, 13) == 1        # about the largest, never more
    with pytest.raises(ValueError, match="has 13 tokens, there is room for 12"):
        data.longest(render, 12)


# ---- the stage ---------------------------------------------------------------------------------------------------------------------------

SMALL = replace(PRESETS["micro"], length=160, documents=8, longctx_steps=3, longctx_documents=8, sft_steps=3, sft_documents=4)
STAGES = """
import sys, train
from nanokimi.config import *
train.PRESETS["micro"] = SMALL
train.evaluate.QUICK = {stage: ("arithmetic",) for stage in train.evaluate.QUICK}        # all of val is slow, and not what is tested
for stage in ("pretrain", "longctx", "sft"):
    sys.argv = ["train.py", "--preset", "micro", "--steps", "3", "--threads", "1", "--precision", "32-true", "--stage", stage, "--run", RUN]
    train.main()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, tokenizer):
    """A micro run: pretrain, longctx, the cold start; each as its command does it, in one process."""
    run = tmp_path_factory.mktemp("runs") / "micro"
    tokenizer.save(run / "tokenizer")
    script = STAGES.replace("SMALL", repr(SMALL)).replace("RUN", repr(str(run)))
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return run


def test_the_stage_extends_the_pretrained_model_and_the_cold_start_begins_from_it(run):
    before, after, chat = (load(run / stage) for stage in ("pretrain", "longctx", "sft"))
    length = SMALL.length
    assert before.config.language.rope_factor == 1.0
    assert after.config == replace(before.config, language=replace(before.config.language, rope_factor=float(LONGER), rope_original=length,
                                                                   context=LONGER * length))
    assert chat.config == after.config
    same = lambda a, b: torch.equal(a.vision.layers[0].attn.wqkv.weight, b.vision.layers[0].attn.wqkv.weight)
    assert same(chat, after) and not same(after, before)                 # the cold start leaves the encoder as it finds it
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows if row["stage"] == "longctx"] == [1, 2, 3]
    assert newest_stage(run).name == "sft"


def test_needles_are_asked_and_drawn(run, monkeypatch):
    monkeypatch.setattr(needles, "SHARES", (0.5, 1, 4))
    monkeypatch.setattr(needles, "DEPTHS", (0, 1))
    monkeypatch.setattr(sys, "argv", ["needles", str(run), "--split", "test", "--problems", "1", "--threads", "1", "--out", str(run / "results.json")])
    needles.main()
    assert "needles" in (run / "test_reads.jsonl").read_text("utf-8")
    content = json.loads((run / "results.json").read_text("utf-8"))
    assert content["lengths"] == [80, 160, 640] and content["rows"][0]["problems"] == 2
    assert np.array(content["cells"]["clip"]["yarn"]).shape == (3, 2)
    assert len(content["rows"]) == 3 * 3 * 3 and all((run / name).stat().st_size > 5000 for name in ("needles.png", "results.png"))


def test_stages_begin_from_the_right_base_or_not_at_all(tmp_path):
    """No base yet: said. A half done cold start is not moved to another base. The cold start takes longctx where it is finished."""
    with pytest.raises(BadInput, match="longctx begins from a pre-trained model"):
        plan.base(tmp_path, "longctx")
    (tmp_path / "pretrain").mkdir(), (tmp_path / "longctx").mkdir(), (tmp_path / "sft" / "step-000004").mkdir(parents=True)
    (tmp_path / "pretrain" / "model.safetensors").touch()
    with pytest.raises(BadInput, match="half done"):
        plan.base(tmp_path, "longctx")
    (tmp_path / "sft" / "model.safetensors").touch()                     # finished, killed before its checkpoint was cleared
    assert plan.base(tmp_path, "longctx") == tmp_path / "pretrain"
    assert plan.base(tmp_path, "pretrain") is None and plan.base(tmp_path, "sft") == tmp_path / "pretrain"
    (tmp_path / "longctx" / "step-000002").mkdir()
    with pytest.raises(BadInput, match="long context of .* is half done"):
        plan.base(tmp_path, "sft")
    (tmp_path / "longctx" / "model.safetensors").touch()
    assert plan.base(tmp_path, "sft") == tmp_path / "longctx"
