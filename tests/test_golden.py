"""Our weights inside transformers' kimi_k25 and deepseek_v3 (fp32): the same numbers, and back bit for bit."""
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from nanokimi import released
from nanokimi.config import PRESETS, LanguageConfig, ModelConfig, VisionConfig
from nanokimi.model import Batch, NanoKimi
from nanokimi.vision import VisionClip, patchify

transformers = pytest.importorskip("transformers", minversion="5.20", reason="golden tests compare with transformers' kimi_k25")

PAD, PATCH = 60, 4
CFG = ModelConfig(VisionConfig(patch=PATCH, dim=32, layers=2, heads=2, mlp=48, pos_grid=6),
                  LanguageConfig(vocab=64, dim=32, layers=3, heads=2, q_lora=24, kv_lora=16, nope=8, rope=8, v_dim=12, dense_ffn=48,
                                 experts=8, top_k=2, expert_ffn=24, init_std=0.2))
SIZES = [(2, 2), (4, 6), (6, 6), (8, 2), (4, 4)]               # (h, w) in patches: native, non-square, on and off the position grid


@pytest.fixture(scope="module")
def ours():
    """A model in which every parameter and the selection bias is random, so that no term can hide."""
    torch.manual_seed(0)
    model = NanoKimi(CFG, PAD).eval()
    for p in model.parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p, mean=1.0, std=0.3)
    torch.nn.init.normal_(model.vision.embed.pos, std=0.5)
    for layer in model.language.layers[1:]:
        torch.nn.init.normal_(layer.moe.router.e_score_correction_bias, std=0.3)
    return model


def load_theirs(kind, config, tensors):
    """Their model, loaded by their own reader of the released layout, every tensor found."""
    model, info = kind.from_pretrained(None, config=config, state_dict=tensors, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@pytest.fixture(scope="module")
def theirs(ours):
    return load_theirs(transformers.Kimi_K25ForConditionalGeneration, transformers.Kimi_K25Config(**released.kimi_k25_config(CFG, PAD)),
                       released.to_kimi_k25(ours.state_dict(), CFG))


def clips(frames, sizes=SIZES, seed=0):
    rng = np.random.default_rng(seed)
    return [VisionClip(rng.integers(0, 256, (frames, h * PATCH, w * PATCH, 3), dtype=np.uint8)) for h, w in sizes]


def pixel_values(patches):
    """Their input: (P, 3, p, p) in [-1, 1]."""
    return (patches.float() / 127.5 - 1).view(-1, 3, PATCH, PATCH)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_vision_tower_and_projector(ours, theirs, frames):
    patches, grids = patchify(clips(frames), PATCH)
    media = ours.vision(patches, grids)                         # (M, 4, D)
    expected = theirs.model.vision_tower(pixel_values(patches), grid_thw=torch.tensor(grids)).pooler_output
    close(media, expected)
    close(ours.projector(media), theirs.model.mm_projector(expected).squeeze(1))


@torch.no_grad()
def test_clips_of_different_length_match_the_tower_clip_by_clip(ours, theirs):
    """Mixed t breaks transformers' tower (its merge index cannot be concatenated), so it sees one clip at a time."""
    batch = [clip for t in (3, 1, 4, 1, 2) for clip in clips(t, SIZES[t:t + 1], seed=t)]
    expected = []
    for clip in batch:
        patches, grids = patchify([clip], PATCH)
        expected.append(theirs.model.vision_tower(pixel_values(patches), grid_thw=torch.tensor(grids)).pooler_output)
    close(ours.vision(*patchify(batch, PATCH)), torch.cat(expected))


@torch.no_grad()
def test_whole_model_on_text_and_pictures(ours, theirs):
    pictures = clips(1, SIZES[:3])
    torch.manual_seed(1)
    ids = torch.randint(0, PAD, (1, 40))
    start = 3
    for clip in pictures:
        ids[0, start:start + clip.tokens(PATCH)] = PAD
        start += clip.tokens(PATCH) + 4
    patches, grids = patchify(pictures, PATCH)
    batch = Batch(ids, torch.full_like(ids, -100), torch.arange(40)[None], torch.ones_like(ids), patches, grids)
    expected = theirs(input_ids=ids, pixel_values=pixel_values(patches), image_grid_thw=torch.tensor(grids)).logits
    close(ours.language.head(ours(batch)), expected)


@pytest.fixture(scope="module")
def deepseek(ours):
    return load_theirs(transformers.DeepseekV3ForCausalLM, transformers.DeepseekV3Config(**released.deepseek_v3_config(CFG.language)),
                       released.to_deepseek_v3(ours.state_dict(), CFG))


@torch.no_grad()
def test_deepseek_v3_logits(ours, deepseek):
    torch.manual_seed(2)
    ids = torch.randint(0, PAD, (3, 50))
    hidden = ours.language(ours.embed(ids), torch.arange(50).expand(3, 50))
    close(ours.language.head(hidden), deepseek(ids).logits)


@torch.no_grad()
def test_mla_attention(ours, deepseek):
    """One attention layer alone, at positions that do not start at 0."""
    from nanokimi.language import Context, attention_mask, rope_1d
    x, positions = torch.randn(2, 30, 32), torch.arange(7, 37).expand(2, 30)
    mask = attention_mask(None, None, 30, x)
    ctx = Context(rope_1d(positions, CFG.language.rope, CFG.language.rope_theta), mask, None, None, None)
    rope = deepseek.model.rotary_emb(x, positions)
    expected = deepseek.model.layers[1].self_attn(x, position_embeddings=rope, attention_mask=mask)[0]
    close(ours.language.layers[1].attn(x, ctx), expected)


@torch.no_grad()
def test_router_and_experts(ours, deepseek):
    x = torch.randn(2, 30, 32)
    scores, chosen, weights = ours.language.layers[2].moe.router(x.flatten(0, 1))
    logits, their_weights, their_chosen = deepseek.model.layers[2].mlp.gate(x)
    close(scores, logits.sigmoid())
    dense = lambda w, i: torch.zeros(60, 8).scatter_(1, i, w)
    close(dense(weights, chosen), dense(their_weights, their_chosen))
    close(ours.language.layers[2].moe(x), deepseek.model.layers[2].mlp(x))


def same(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_round_trip_is_bitwise(ours):
    state = ours.state_dict()
    same(released.from_kimi_k25(released.to_kimi_k25(state, CFG), CFG), state)
    language = {name: x for name, x in state.items() if name.startswith("language.")}
    same(released.from_deepseek_v3(released.to_deepseek_v3(state, CFG), CFG), language)


def test_tensors_that_do_not_fit_are_named(ours):
    state = ours.state_dict() | {"surprise": torch.zeros(1)}
    with pytest.raises(ValueError, match="surprise"):
        released.to_kimi_k25(state, CFG)
    smaller = replace(CFG, language=replace(CFG.language, layers=4))
    with pytest.raises(ValueError, match="layers.3"):
        released.to_kimi_k25(ours.state_dict(), smaller)


RELEASED = PRESETS["k2.5"].model


def blocks(state):
    """{block: number of its parameters}; the released names and those of transformers' modules call the same blocks the same."""
    out = Counter()
    for name, x in state.items():
        layer = re.search(r"(?:layers|blocks)\.(\d+)\.", name)
        part = next(part for part in ("vision_tower", "mm_projector", "embed_tokens", "lm_head", "language_model") if part in name)
        out[part, layer and layer[1]] += x.numel()
    return out


def test_released_configuration_has_the_released_shapes():
    """On the meta device: 1.04T parameters, and every tensor fits transformers' model of that configuration."""
    with torch.device("meta"):
        model = NanoKimi(RELEASED, 163605)
        theirs = transformers.Kimi_K25ForConditionalGeneration(transformers.Kimi_K25Config(**released.kimi_k25_config(RELEASED, 163605)))
    sizes, expected = (blocks(state) for state in (released.to_kimi_k25(model.state_dict(), RELEASED), theirs.state_dict()))
    assert sizes == expected and len(sizes) > 27 + 61
    assert sum(p.numel() for p in model.language.parameters()) == pytest.approx(1.04e12, rel=0.02)      # K2 Table 2: 1.04T in all
    assert 3.5e8 < sum(p.numel() for p in model.vision.parameters()) < 4.5e8                            # ~400M
