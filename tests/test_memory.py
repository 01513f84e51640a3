"""The memory calculator against what torch's profiler sees a CPU allocate; the large presets, without their memory; --compile."""
import shutil
import sys
from dataclasses import replace
from itertools import accumulate

import pytest
import torch

import train
from nanokimi import data, memory, plan, released, rollout
from nanokimi.config import LONGER, PRESETS, LanguageConfig, ModelConfig, VisionConfig
from nanokimi.engine import Engine
from nanokimi.model import NanoKimi
from nanokimi.muon import MuonClip
from nanokimi.tokenizer import Tokenizer

WIDE = ModelConfig(VisionConfig(dim=64, layers=1, heads=2, mlp=128),
                   LanguageConfig(vocab=1024, dim=256, layers=2, experts=16, top_k=4, expert_ffn=96, dense_ffn=512))
SIZES = {"micro": replace(PRESETS["micro"], documents=8), "nano": replace(PRESETS["nano"], documents=8),
         "wide": replace(PRESETS["nano"], model=WIDE, documents=12)}


TOKENIZERS = {}


def tokenizer_of(preset):
    """Trained once a vocabulary."""
    size = preset.model.language.vocab, preset.model.vision.patch
    if size not in TOKENIZERS:
        TOKENIZERS[size] = Tokenizer.train(data.corpus(1500), *size)
    return TOKENIZERS[size]


def batch_of(preset, tokenizer):
    return data.Batches("pretrain", tokenizer, preset.model.vision, 0, preset.documents, preset.length, 100).shard(99, 0)[0]


def allocated(function):
    """(bytes still there afterwards, the most in between) by the profiler's own record of the CPU allocator."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = list(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))
    return live[-1], max(live), kept


@pytest.mark.parametrize("size, half, attention", [("micro", False, "sdpa"), ("nano", False, "manual"), ("wide", True, "sdpa")])
def test_computed_equals_measured(size, half, attention):
    preset = SIZES[size]
    tokenizer = tokenizer_of(preset)
    batch = batch_of(preset, tokenizer)
    with memory.dry_run() as ledger:
        both, step = memory.training(memory.shell(preset, tokenizer.media_pad, attention=attention).train(), ledger, batch, half)

    torch.manual_seed(0)
    weights, _, model = allocated(lambda: memory.shell(preset, tokenizer.media_pad, attention=attention).train())
    optimizer = MuonClip(model.named_parameters(), lr=1e-4, ns_dtype=torch.bfloat16)

    def forward_and_backward():
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, _ = model.loss(batch)
        loss.backward()
    forward_and_backward()                                       # gradients are there, as the calculator assumes
    gradients = sum(p.grad.untyped_storage().nbytes() for p in model.parameters())
    states, _, _ = allocated(lambda: memory.states(optimizer))
    _, passing, _ = allocated(forward_and_backward)
    _, stepping, _ = allocated(optimizer.step)
    always = weights + gradients + states
    assert [both.weights, both.gradients, both.optimizer] == pytest.approx([weights, gradients, states], rel=0.01)
    assert both.peak - both.weights - both.gradients - both.optimizer == pytest.approx(passing, rel=0.1)
    assert both.peak == pytest.approx(always + passing, rel=0.1)
    assert step.working == pytest.approx(stepping, rel=0.1)


def test_a_cache_is_what_the_engine_allocates():
    preset = SIZES["nano"]
    tokenizer = tokenizer_of(preset)
    with memory.dry_run() as ledger:
        engine = Engine(memory.shell(preset, tokenizer.media_pad, "cuda"), tokenizer)
        need = memory.generation(engine.model, ledger, engine, [memory.picture_prompt(engine)] * 4, 100)
    real = Engine(memory.shell(preset, tokenizer.media_pad), tokenizer)
    prompts = [memory.picture_prompt(real)] * 4
    with real._evaluating(), real._inference():
        left, peak, (hidden, cache) = allocated(lambda: memory.prefilled(real, prompts, 100))
    assert need.cache == sum(latent.numel() * latent.element_size() for latent in cache.latents)
    assert need.cache + need.working > 0.9 * peak


@pytest.mark.parametrize("name", ["nano", "laptop", "consumer"])
def test_forward_on_a_gpu_finds_everything_there(name):
    """Every stage's forward, prefill and decoding step with fake tensors on device cuda: what was left on the CPU raises."""
    preset = replace(PRESETS[name], documents=6, sft_documents=4)
    tokenizer = tokenizer_of(preset)
    with memory.dry_run() as ledger:
        model = memory.shell(preset, tokenizer.media_pad, "cuda").train()
        for stage, documents, length in (("pretrain", 6, preset.length), ("longctx", 4, LONGER * preset.length), ("sft", 4, preset.sft_length)):
            batch, _ = data.Batches(stage, tokenizer, preset.model.vision, 0, documents, length, 100).shard(99, 0)
            loss, _ = model.loss(batch.to("cuda"))
            assert loss.device.type == "cuda"
        engine = Engine(model, tokenizer)
        assert memory.generation(model, ledger, engine, [memory.picture_prompt(engine)] * 2, 8).cache > 0
        groups = [rollout.start(engine, item, 2, 8, (0, n)) for n, item in enumerate(rollout.make_pool(4, 0.5, 0))]
        for talk in (talk for group in groups for talk in group.talks):
            talk.response.add([0] * 8, [0.0] * 8, True)
        micro = rollout.micro_batches(groups, [[0.0, 1.0]] * 4, preset.model.vision.patch, tokenizer.pad, 8192)[0]
        logprobs, _ = model.target_logprobs(micro.batch.to("cuda"))
        assert logprobs.device.type == "cuda" and len(logprobs) == len(micro.old)
        with pytest.raises(RuntimeError, match="(?i)device"):
            model.loss(batch_of(preset, tokenizer))


def test_while_responses_are_sampled_the_optimizer_waits_and_they_are_as_many_as_the_engine_takes(monkeypatch):
    preset, generation, asked = SIZES["micro"], memory.generation, []
    monkeypatch.setattr(memory, "generation", lambda model, ledger, engine, prompts, *rest, **more:
                        asked.append([len(p.ids) for p in prompts]) or generation(model, ledger, engine, prompts, *rest, **more))
    monkeypatch.setattr("nanokimi.engine.PREFILL_TOKENS", 4000)
    needs = memory.needs(preset, tokenizer_of(preset))
    assert needs["rl: responses"].optimizer == pytest.approx(needs["pretrain"].optimizer, rel=1e-4)
    assert len(asked[0]) == 4000 // max(asked[0]) < memory.PROBLEMS * memory.K and asked[0] == sorted(asked[0], reverse=True)


def test_k25_has_the_released_shapes():
    """K2.5's config.json and tensor shapes; and transformers' deepseek_v3 of that configuration."""
    transformers = pytest.importorskip("transformers", minversion="5.20")
    cfg = PRESETS["k2.5"].model
    with torch.device("meta"):
        model = NanoKimi(cfg, 163605)
        theirs = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**released.deepseek_v3_config(cfg.language)))
    state = released.to_kimi_k25(model.state_dict(), cfg)
    layer = "language_model.model.layers.60."
    shapes = {"self_attn.q_a_proj": (1536, 7168), "self_attn.q_b_proj": (12288, 1536), "self_attn.kv_a_proj_with_mqa": (576, 7168),
              "self_attn.kv_b_proj": (16384, 512), "self_attn.o_proj": (7168, 8192), "mlp.gate": (384, 7168),
              "mlp.experts.383.down_proj": (7168, 2048), "mlp.shared_experts.up_proj": (2048, 7168)}
    assert {name: tuple(state[f"{layer}{name}.weight"].shape) for name in shapes} == shapes
    assert state["language_model.model.layers.0.mlp.gate_proj.weight"].shape == (18432, 7168)
    assert state["language_model.lm_head.weight"].shape == (163840, 7168)
    assert state["vision_tower.encoder.blocks.26.wqkv.weight"].shape == (3456, 1152) and state["mm_projector.proj.2.weight"].shape == (7168, 4608)
    ours = sum(p.numel() for p in model.language.parameters())
    assert ours == sum(p.numel() for p in theirs.parameters())
    _, active = memory.parameters(PRESETS["k2.5"])
    assert ours == pytest.approx(1.04e12, rel=0.02) and active + cfg.language.vocab * cfg.language.dim == pytest.approx(32.6e9, rel=0.02)


def test_training_k25_is_one_clear_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "--preset", "k2.5"])
    with pytest.raises(SystemExit) as stop:
        train.main()
    assert stop.value.code == 2 and "python -m nanokimi.memory --preset k2.5" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs a C++ compiler: no g++ here")
def test_compiled_layers_give_the_eager_loss():
    """One layer, with experts: it holds everything that a dense one does, and a compiler takes a minute for two."""
    micro = SIZES["micro"]
    preset = replace(micro, model=replace(micro.model, language=replace(micro.model.language, layers=1, dense_layers=0)))
    tokenizer = tokenizer_of(preset)
    batch = batch_of(preset, tokenizer)
    torch.manual_seed(0)
    model = memory.shell(preset, tokenizer.media_pad, attention="manual").train()
    eager, _ = model.loss(batch)
    plan.compile_layers(model)
    compiled, _ = model.loss(batch)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    assert abs(compiled.item() - eager.item()) < 1e-4
