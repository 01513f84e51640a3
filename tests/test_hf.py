"""Our folders in transformers and its neighbours, and their folders here."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from nanokimi import data, hf
from nanokimi.config import LanguageConfig, ModelConfig, VisionConfig
from nanokimi.engine import Engine
from nanokimi.model import NanoKimi, load, save
from nanokimi.tokenizer import Rendered, Tokenizer
from nanokimi.vision import VisionClip, patchify, prepare_image, prepare_video

transformers = pytest.importorskip("transformers", minversion="5.20")
from packaging.version import Version

CLIPS_WORK = Version(transformers.__version__) > Version("5.23.0")      # up to there clips do not pass get_video_features
PATCH = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with one stage whose every parameter is random, so that no term can hide."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    tokenizer = Tokenizer.train(data.corpus(300), 600, PATCH)
    cfg = ModelConfig(VisionConfig(patch=PATCH, dim=32, layers=2, heads=2, mlp=48, pos_grid=6, max_image_patches=64),
                      LanguageConfig(vocab=tokenizer.vocab_size, dim=32, layers=3, heads=2, q_lora=24, kv_lora=16, nope=8, rope=8, v_dim=12,
                                     dense_ffn=48, experts=4, expert_ffn=24, init_std=0.2))
    torch.manual_seed(0)
    model = NanoKimi(cfg, tokenizer.media_pad)
    for layer in model.language.layers[1:]:
        torch.nn.init.normal_(layer.moe.router.e_score_correction_bias, std=0.3)
    tokenizer.save(folder / "tokenizer")
    save(model, folder / "sft")
    return folder


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("hf")
    hf.export(run, out)
    return out


@pytest.fixture(scope="module")
def engine(run):
    model = load(run / "sft")
    return Engine(model, Tokenizer.load(run / "tokenizer", PATCH))


@pytest.fixture(scope="module")
def processor(folder):
    return transformers.AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    model, info = transformers.AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def pixels(seed, height, width):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


# ---- tokenizer and chat template ------------------------------------------------------------------------------------------------------

TEXTS = ["", "a red circle", "  two  spaces\n\n\nlines \t tab", "don't WE'LL", "12345 + 678 = ?", "naïve café — 東京 и кот 🐈", "\u0000\x7f", "a" * 70,
         "x=[1,2];\r\nprint(x)"]


def test_same_ids_for_the_same_text(engine, processor):
    paragraphs = data.corpus(40)
    for text in [*TEXTS, *(str(text) for text in paragraphs)]:
        ids = processor.tokenizer(text, split_special_tokens=True).input_ids
        assert ids == engine.tokenizer.encode(text), text
        assert processor.tokenizer.decode(ids) == text


PYTHON = data.PYTHON_TOOL | {"parameters": {"properties": {"code": {"type": "string", "description": "what to run"},
                                                           "times": {"type": "integer"}, "mode": {"type": "string", "enum": ["a", "b"]},
                                                           "boxes": {"type": "array", "items": {"type": "integer"}}}, "required": ["code"]}}
CALL = [{"name": "python", "arguments": {"code": "print('né')\n", "times": 2}}]
CHATS = {
    "one turn": [{"role": "user", "content": "what is 2 + 3?"}],
    "system, history and thinking": [
        {"role": "system", "content": "be brief."}, {"role": "user", "content": "hi"},
        {"role": "assistant", "thinking": "gone", "content": "hello"}, {"role": "user", "content": "2 + 3?"},
        {"role": "assistant", "thinking": "2 + 3 = 5", "content": "5"}],
    "tools": [
        {"role": "user", "content": "count"}, {"role": "assistant", "thinking": "code", "content": "", "tool_calls": CALL + CALL},
        {"role": "tool", "content": "7"}, {"role": "tool", "content": "8\n"},
        {"role": "assistant", "thinking": "again", "content": "wait", "tool_calls": CALL}, {"role": "tool", "content": "9"}],
}


def to_theirs(message):
    """Our message in the form that chat templates read."""
    out = {("reasoning_content" if key == "thinking" else key): value for key, value in message.items()}
    if "tool_calls" in out:
        out["tool_calls"] = [{"type": "function", "function": call} for call in out["tool_calls"]]
    return out


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize("tools", [None, [PYTHON], [PYTHON, PYTHON]])
def test_chat_template_renders_what_we_render(engine, processor, name, thinking, generate, tools):
    ours = engine.tokenizer.render_chat(CHATS[name], tools=tools, thinking=thinking, generate=generate)
    declared = tools and [{"type": "function", "function": tool} for tool in tools]
    text = processor.apply_chat_template([to_theirs(m) for m in CHATS[name]], tools=declared, add_generation_prompt=generate,
                                         thinking=thinking, tokenize=False)
    assert text == engine.tokenizer.decode(ours.ids)
    assert processor.tokenizer(text).input_ids == ours.ids


def test_template_refuses_what_we_refuse(processor):
    for wrong in ([{"role": "tool", "content": "7"}], [{"role": "robot", "content": "7"}]):
        with pytest.raises(Exception, match="tool call|unknown role"):
            processor.apply_chat_template(wrong, tokenize=False)


# ---- pictures ---------------------------------------------------------------------------------------------------------------------------

def question(image, text=" what is it?"):
    return [{"role": "user", "content": [{"type": "image", "image": Image.fromarray(image)}, {"type": "text", "text": text}]}]


@pytest.mark.parametrize("height,width", [(32, 32), (17, 60), (64, 64), (200, 90)])
def test_processor_prepares_what_we_prepare(engine, processor, height, width):
    """Ids and patches; a picture that must shrink differs by rounding alone (theirs resizes with torchvision, ours with Pillow)."""
    image = pixels(height, height, width)
    inputs = processor.apply_chat_template(question(image), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    clip = prepare_image(image, engine.model.config.vision)
    prompt = engine.tokenizer.render_chat([{"role": "user", "content": [clip, " what is it?"]}], generate=True)
    assert inputs["input_ids"][0].tolist() == prompt.ids
    patches, grids = patchify([clip], PATCH)
    assert inputs["image_grid_thw"].tolist() == [list(grid) for grid in grids]
    levels = (inputs["pixel_values"].flatten(1) + 1) * 127.5
    distance = (levels - patches).abs()
    assert distance.max() < 1e-3 if height < 200 else distance.mean() < 1


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[(32, 32)], [(48, 32), (16, 64)]])
def test_generate_gives_our_tokens(engine, processor, theirs, sizes):
    """AutoProcessor's chat template and generate against our engine, greedy."""
    images = [pixels(i, *size) for i, size in enumerate(sizes)]
    content = [{"type": "image", "image": Image.fromarray(image)} for image in images] + [{"type": "text", "text": " and?"}]
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,
                                           return_dict=True, return_tensors="pt")
    out = theirs.generate(**inputs, max_new_tokens=24, suppress_tokens=[engine.tokenizer.media_pad])
    prompt = engine.tokenizer.render_chat([{"role": "user", "content": [*(prepare_image(i, engine.model.config.vision) for i in images),
                                                                        " and?"]}], generate=True)
    (response,), = engine.generate([prompt], 24)
    assert out[0, inputs["input_ids"].shape[1]:].tolist() == response.ids


# ---- clips: what works in transformers, and what does not yet ---------------------------------------------------------------------------

def clip_of(frames, seed=0):
    return VisionClip(np.stack([pixels(seed + i, 32, 48) for i in range(frames)]), "video")


@torch.no_grad()
def test_clips_of_one_length_pass_their_tower_and_projector(engine, theirs):
    patches, grids = patchify([clip_of(4), clip_of(4, 9)], PATCH)
    values = (patches.float() / 127.5 - 1).view(-1, 3, PATCH, PATCH)
    expected = theirs.model.mm_projector(theirs.model.vision_tower(values, grid_thw=torch.tensor(grids)).pooler_output).squeeze(1)
    ours = engine.model.projector(engine.model.vision(patches, grids))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def video_features(theirs, frames):
    patches, grids = patchify([clip_of(n, n) for n in frames], PATCH)
    values = (patches.float() / 127.5 - 1).view(-1, 3, PATCH, PATCH)
    out = theirs.model.get_video_features(values, torch.tensor(grids))
    return torch.cat(list(out.pooler_output)), patches, grids


@torch.no_grad()
@pytest.mark.skipif(CLIPS_WORK, reason="shows the defect of transformers up to 5.23.0")
@pytest.mark.parametrize("frames", [[4], [4, 3]])
def test_clips_do_not_pass_their_get_video_features_yet(theirs, frames):
    with pytest.raises(RuntimeError, match="split_sizes|Sizes of tensors must match"):
        video_features(theirs, frames)


@torch.no_grad()
@pytest.mark.skipif(not CLIPS_WORK, reason="clips with t > 1 fail inside transformers up to 5.23.0 (docs/INTEROP.md)")
@pytest.mark.parametrize("frames", [[4], [4, 3]])
def test_clips_give_our_features(engine, theirs, frames):
    expected, patches, grids = video_features(theirs, frames)
    torch.testing.assert_close(engine.model.projector(engine.model.vision(patches, grids)), expected, rtol=1e-4, atol=1e-4)


def test_video_processor_prepares_what_we_prepare(engine, processor):
    """Frames, chunks and patches of a clip of 6 frames at 2 frames a second: that much works."""
    frames = np.stack([pixels(i, 32, 48) for i in range(6)])
    metadata = {"total_num_frames": 6, "fps": 2.0, "duration": 3.0, "frames_indices": list(range(6))}
    out = processor.video_processor([torch.from_numpy(frames).permute(0, 3, 1, 2)], video_metadata=[metadata], do_sample_frames=False,
                                    return_tensors="pt")
    patches, grids = patchify(prepare_video(frames, 2.0, engine.model.config.vision), PATCH)
    assert out["video_grid_thw"].tolist() == [list(grid) for grid in grids]
    assert ((out["pixel_values_videos"].flatten(1) + 1) * 127.5 - patches).abs().max() < 1e-3


# ---- folders both ways --------------------------------------------------------------------------------------------------------------------

def same_weights(a, b):
    a, b = load_file(a), load_file(b)
    assert a.keys() == b.keys()
    assert all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_round_trip_is_bitwise(run, tmp_path, dtype):
    hf.export(run, tmp_path / "a", dtype=dtype)
    hf.bring_back(tmp_path / "a", tmp_path / "run", "sft")
    if dtype == "fp32":
        same_weights(run / "sft/model.safetensors", tmp_path / "run/sft/model.safetensors")
        assert (run / "sft/config.json").read_text("utf-8") == (tmp_path / "run/sft/config.json").read_text("utf-8")
    assert (run / "tokenizer/tokenizer.tiktoken").read_text("utf-8") == (tmp_path / "run/tokenizer/tokenizer.tiktoken").read_text("utf-8")
    hf.export(tmp_path / "run", tmp_path / "b", dtype=dtype)
    same_weights(tmp_path / "a/model.safetensors", tmp_path / "b/model.safetensors")
    for file in ("config.json", "tokenizer.json", "processor_config.json", "chat_template.jinja"):
        assert (tmp_path / "a" / file).read_text("utf-8") == (tmp_path / "b" / file).read_text("utf-8")


def test_bf16_keeps_the_selection_bias(run, tmp_path):
    hf.export(run, tmp_path, dtype="bf16")
    dtypes = {name.endswith("e_score_correction_bias"): x.dtype for name, x in load_file(tmp_path / "model.safetensors").items()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    assert transformers.AutoModelForImageTextToText.from_pretrained(tmp_path).dtype == torch.bfloat16


@torch.no_grad()
def test_what_transformers_saved_at_other_sizes_comes_back(processor, tmp_path, engine):
    """A model that transformers made and saved, its names as it writes them: same logits here."""
    cfg = ModelConfig(VisionConfig(patch=PATCH, dim=24, layers=1, heads=2, mlp=40, pos_grid=5, max_image_patches=64),
                      LanguageConfig(vocab=engine.tokenizer.vocab_size, dim=48, layers=2, heads=3, q_lora=20, kv_lora=12, nope=6, rope=4,
                                     v_dim=10, dense_ffn=40, experts=6, top_k=3, shared=2, expert_ffn=16, rope_theta=1000.0, eps=1e-5))
    config = transformers.Kimi_K25Config(**hf.released.kimi_k25_config(cfg, engine.tokenizer.media_pad))
    torch.manual_seed(1)
    theirs = transformers.Kimi_K25ForConditionalGeneration(config).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)
    theirs.save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    processor.save_pretrained(tmp_path / "saved")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    hf.bring_back(tmp_path / "saved", tmp_path / "run", "sft")
    ours = load(tmp_path / "run/sft")
    assert ours.config == cfg
    prompt = engine.tokenizer.render_chat([{"role": "user", "content": [prepare_image(pixels(3, 32, 48), cfg.vision), " what?"]}], generate=True)
    batch = data.to_batch([[prompt]], len(prompt.ids), engine.tokenizer.pad, PATCH)
    values = (batch.patches.float() / 127.5 - 1).view(-1, 3, PATCH, PATCH)
    expected = theirs(input_ids=batch.ids, pixel_values=values, image_grid_thw=torch.tensor(batch.grid_thw)).logits
    torch.testing.assert_close(ours.language.head(ours(batch)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where,value,sentence", [
    (("text_config", "n_group"), 4, "n_group is 4, not 1"),
    (("text_config", "rope_parameters"), {"rope_type": "linear", "rope_theta": 1e4}, "rope_type is linear"),
    (("text_config", "rope_parameters"), {"rope_type": "yarn", "rope_theta": 1e4}, "no factor"),
    (("vision_config", "hidden_act"), "gelu", "hidden_act is gelu"),
    (("tie_word_embeddings",), True, "tie_word_embeddings is True"),
    (("text_config", "num_hidden_layers"), 4, "missing .*layers.3"),
    (("text_config", "vocab_size"), 700, "is 600, not 700"),
    (("model_type",), "qwen3", "holds a qwen3"),
])
def test_what_does_not_fit_is_one_sentence(folder, tmp_path, where, value, sentence):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    part = config
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=sentence):
        hf.bring_back(tmp_path, tmp_path / "run", "sft")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name, value", [("image_mean", [0.48, 0.45, 0.4]), ("patch_size", 14), ("rescale_factor", 1.0)])
def test_pixels_that_are_prepared_differently_are_refused(folder, tmp_path, name, value):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = json.loads((tmp_path / "processor_config.json").read_text("utf-8"))
    content["image_processor"][name] = value
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"prepared differently from ours: image_processor.{name}"):
        hf.bring_back(tmp_path, tmp_path / "run", "sft")


def test_the_card_of_a_tuned_stage_does_not_vouch_for_its_files(run):
    model = load(run / "sft")
    assert "license: mit" in hf.model_card(run, "sft", model, False)
    (run / "tuned").mkdir()
    (run / "tuned" / "own.json").touch()
    card = hf.model_card(run, "tuned", model, False)
    shutil.rmtree(run / "tuned")
    assert "license: mit" not in card and "files of somebody's own" in card


def test_import_overwrites_nothing(folder, run, tmp_path):
    hf.bring_back(folder, tmp_path / "run", "sft")
    with pytest.raises(ValueError, match="exists already"):
        hf.bring_back(folder, tmp_path / "run", "sft")
    hf.bring_back(folder, tmp_path / "run", "rl")                      # the same tokenizer: another stage of the run
    Tokenizer.train(data.corpus(300), 700, PATCH).save(tmp_path / "other" / "tokenizer")
    with pytest.raises(ValueError, match="another tokenizer"):
        hf.bring_back(folder, tmp_path / "other", "sft")


def test_export_overwrites_only_an_export(run, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="no earlier export"):
        hf.export(run, tmp_path)
    assert (tmp_path / "README.md").read_text("utf-8") == "mine"
    hf.export(run, tmp_path / "new")
    hf.export(run, tmp_path / "new")


@pytest.mark.parametrize("vocab", [{"\u2581a": 0}, {"a": 0, "b": 7}, [["a", 0.1]]])
def test_foreign_tokenizers_are_refused(folder, tmp_path, vocab):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    content["model"]["vocab"] = vocab
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no byte-level BPE"):
        hf.bring_back(tmp_path, tmp_path / "run", "sft")


def test_commands(run, tmp_path):
    """As a user calls them; a missing file is one line and exit code 2."""
    call = lambda *args: subprocess.run([sys.executable, "-m", "nanokimi.hf", *map(str, args)], capture_output=True, text=True)
    assert call("export", run, tmp_path / "out", "--dtype", "bf16").returncode == 0
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "OpenMoji" in card and "no weights of theirs" in card.replace("\n", " ")
    assert call("import", tmp_path / "out", tmp_path / "back").returncode == 0 and (tmp_path / "back/sft/model.safetensors").exists()
    (tmp_path / "out" / "tokenizer.json").unlink()
    for wrong in (("import", tmp_path / "out", tmp_path / "no"), ("export", tmp_path / "none", tmp_path / "no")):
        done = call(*wrong)
        assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.count("\n") == 1


# ---- neighbours ---------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def text_folder(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("text")
    hf.export(run, out, text_only=True)
    return out


@torch.no_grad()
def test_text_only_is_a_deepseek_v3(engine, text_folder):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(text_folder, output_loading_info=True)
    assert type(model).__name__ == "DeepseekV3ForCausalLM" and not any(info.values())
    tokenizer = transformers.AutoTokenizer.from_pretrained(text_folder)
    assert len(tokenizer) == model.config.vocab_size
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "2 + 3?"}], add_generation_prompt=True, return_tensors="pt",
                                        return_dict=True)
    out = model.eval().generate(**ids, max_new_tokens=20)
    prompt = engine.tokenizer.render_chat([{"role": "user", "content": "2 + 3?"}], generate=True)
    (response,), = engine.generate([prompt], 20)
    assert out[0, ids["input_ids"].shape[1]:].tolist() == response.ids


def test_ten_steps_of_grpo_in_trl(text_folder, tmp_path):
    """The text model runs unchanged in TRL's trainer: ten steps, finite loss, weights move."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    model = transformers.AutoModelForCausalLM.from_pretrained(text_folder)
    before = model.model.layers[0].self_attn.o_proj.weight.detach().clone()
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": f"{i} + {i + 1}?"}]} for i in range(8)])
    args = trl.GRPOConfig(output_dir=str(tmp_path), max_steps=10, per_device_train_batch_size=4, num_generations=4, max_completion_length=8,
                          learning_rate=1e-3, report_to=[], save_strategy="no", use_cpu=True, bf16=False, logging_steps=1, disable_tqdm=True)
    trainer = trl.GRPOTrainer(model=model, reward_funcs=lambda completions, **_: [float(len(set(c[0]["content"]))) for c in completions],
                              args=args, train_dataset=rows, processing_class=transformers.AutoTokenizer.from_pretrained(text_folder))
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 10 and np.isfinite(losses).all()
    assert not torch.equal(before, trainer.model.model.layers[0].self_attn.o_proj.weight)


def test_lm_evaluation_harness(text_folder, run, tmp_path, monkeypatch):
    """A local task of ours (sums as completions) in lm-evaluation-harness, network off."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lm_eval = pytest.importorskip("lm_eval")
    rows = [{"question": f"{i} + {i}", "answer": str(2 * i), "choices": [str(2 * i), str(2 * i + 1)]} for i in range(1, 7)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {"task": "sums", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "sums.jsonl")}},
            "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}} =", "doc_to_choice": "{{choices}}",
            "doc_to_target": 0, "metric_list": [{"metric": "acc"}]}
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    model = HFLM(pretrained=str(text_folder), device="cpu", batch_size=2)
    out = lm_eval.simple_evaluate(model=model, tasks=[task], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0)
    ours, tokenizer = load(run / "sft"), Tokenizer.load(run / "tokenizer", 8)
    said = [min(row["choices"], key=lambda choice: nats(ours, tokenizer, f"{row['question']} =", f" {choice}")) for row in rows]
    assert out["results"]["sums"]["acc,none"] == pytest.approx(np.mean([choice == row["answer"] for choice, row in zip(said, rows)]))


def nats(model, tokenizer, prompt, answer):
    """Loss of an answer behind a prompt."""
    ids, end = tokenizer.encode(prompt), tokenizer.encode(answer)
    batch = data.to_batch([[Rendered(ids + end, [False] * len(ids) + [True] * len(end))]], len(ids + end), 0, 8)
    return -model.target_logprobs(batch)[0].sum().item()


def test_lora_of_peft_comes_back_through_import(folder, run, tmp_path):
    """docs/INTEROP.md's example, word for word: LoRA on the exported model, merged, saved, imported; nothing else moves."""
    example = (Path(__file__).parent.parent / "docs/INTEROP.md").read_text("utf-8").partition("```python\n")[2].partition("```")[0]
    exec(example.replace('"DIR"', repr(str(folder))).replace('"MERGED"', repr(str(tmp_path / "merged"))), {})
    hf.bring_back(tmp_path / "merged", tmp_path / "run", "sft")
    before, after = load_file(run / "sft/model.safetensors"), load_file(tmp_path / "run/sft/model.safetensors")
    moved = {name.split(".attn.")[-1] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"q_b.weight", "o.weight"}
