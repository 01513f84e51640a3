"""MuonClip: Newton-Schulz against torch's, the split over the real model, update size, QK-Clip on the logits, exact resume."""
import copy
import io

import pytest
import torch
import torch.distributed as dist
from torch.optim._muon import _zeropower_via_newtonschulz

import nanokimi.language as language
from nanokimi import muon, plan
from nanokimi.config import LanguageConfig, ModelConfig, VisionConfig
from nanokimi.model import NanoKimi
from nanokimi.muon import AdamW, MuonClip, fair_shares, matrices, newton_schulz, orthogonal_updates, qk_clip, wsd

SHAPES = [(48, 48), (32, 96), (96, 32), (8, 64)]
TINY = ModelConfig(VisionConfig(dim=32, layers=1, heads=2, mlp=48),
                   LanguageConfig(vocab=64, dim=32, layers=2, heads=3, q_lora=16, kv_lora=16, nope=8, rope=4, v_dim=8, experts=4,
                                  expert_ffn=24, dense_ffn=48))


def tiny_model(seed=0):
    torch.manual_seed(seed)
    return NanoKimi(TINY, media_pad=5)


def fill_gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


# ------------------------------------------------------------------------------------------------------------ Newton-Schulz

def test_newton_schulz_matches_torch():
    torch.manual_seed(0)
    for n, m in [(48, 48), (32, 96)]:
        G = torch.randn(3, n, m)
        expected = torch.stack([_zeropower_via_newtonschulz(g, (3.4445, -4.7750, 2.0315), 5, 1e-7) for g in G]).float()
        assert relative(newton_schulz(G).float(), expected) < 0.02             # bf16 rounding, the order of operations differs


def test_newton_schulz_keeps_singular_vectors_and_flattens_singular_values():
    torch.manual_seed(0)
    G = torch.randn(1, 32, 96)
    U, _, Vh = torch.linalg.svd(G[0], full_matrices=False)
    core = U.T @ newton_schulz(G, torch.float32)[0] @ Vh.T                     # diagonal: same singular vectors
    assert (core - core.diag().diag()).abs().max() < 1e-3
    assert 0.6 < core.diag().min() and core.diag().max() < 1.3


def test_newton_schulz_of_zero_is_zero_and_scale_does_not_matter():
    G = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(newton_schulz(torch.zeros(2, 8, 16)), torch.zeros(2, 8, 16, dtype=torch.bfloat16))
    assert torch.equal(newton_schulz(G), newton_schulz(G * 2.0 ** -9))         # a power of two is exact in bf16
    assert torch.equal(newton_schulz(G), newton_schulz(G))                     # deterministic


@pytest.mark.parametrize("precision, dtype", [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_newton_schulz_multiplies_as_the_run_does(precision, dtype, monkeypatch):
    """bf16 is emulated by processors that do not know it: a step of nano's optimizer took 4.0 s of one thread instead of 0.2."""
    used, real = [], muon.newton_schulz
    monkeypatch.setattr(muon, "newton_schulz", lambda update, dtype: used.append(dtype) or real(update, dtype))
    for chosen in (plan.matmul_dtype(precision), None):
        monkeypatch.setattr(muon, "faster_dtype", lambda: dtype)
        model = tiny_model()
        optimizer = MuonClip(model.named_parameters(), lr=1e-2, ns_dtype=chosen)
        fill_gradients(model.parameters(), 0)
        optimizer.step()
    assert set(used) == {dtype}


def test_batching_over_shapes_changes_nothing():
    torch.manual_seed(0)
    stacks = [torch.randn(k, n, m) for k, (n, m) in zip((1, 3, 2, 1, 40), SHAPES + [(48, 48)])]
    together = orthogonal_updates(stacks, torch.float32)
    for stack, update in zip(stacks, together):
        alone = torch.cat([orthogonal_updates([g[None]], torch.float32)[0] for g in stack])
        assert update.shape == stack.shape and torch.allclose(update, alone, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ the split

def test_fair_shares():
    assert fair_shares([1.0, 5.0, 2.0, 2.5], 2) == [1, 0, 1, 1]                # 5 against 2.5 + 2 + 1
    assert fair_shares([3.0, 3.0], 1) == [0, 0]


def one_step(rank, processes, folder):
    """One MuonClip step as process `rank` of several; the parameters go to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet{processes}", rank=rank, world_size=processes)
    model = tiny_model()
    optimizer = MuonClip(model.named_parameters(), lr=1e-2)
    fill_gradients(model.parameters(), 1)
    optimizer.step()
    torch.save(torch.cat([p.detach().flatten() for p in model.parameters()]), f"{folder}/{processes}-{rank}.pt")
    dist.destroy_process_group()


def test_processes_that_share_newton_schulz_do_the_same_step_as_one(tmp_path):
    for processes in (1, 3):
        torch.multiprocessing.spawn(one_step, (processes, str(tmp_path)), nprocs=processes)
    alone, *together = [torch.load(tmp_path / name) for name in ("1-0.pt", "3-0.pt", "3-1.pt", "3-2.pt")]
    assert all(torch.equal(alone, other) for other in together)


def test_split_of_the_real_model():
    stacks = {name: matrices(name, p.shape) for name, p in tiny_model().named_parameters()}
    adamw = {name for name, stack in stacks.items() if stack is None}
    tables = {"language.embed.weight", "language.head.weight", "vision.embed.pos"}
    assert tables <= adamw
    assert all("norm" in name or name.endswith(".bias") for name in adamw - tables)
    assert stacks["language.layers.1.moe.router.weight"] == (1, 4, 32)
    assert stacks["language.layers.1.moe.gate_up"] == (8, 24, 32)              # 4 experts x (gate, up)
    assert stacks["language.layers.1.moe.down"] == (4, 32, 24)
    assert stacks["language.layers.1.moe.shared.gate_up.weight"] == (2, 24, 32)
    assert stacks["vision.embed.proj.weight"] == (1, 32, 192)
    assert stacks["vision.layers.0.attn.wqkv.weight"] == (1, 96, 32)           # one matrix, as released


def test_unknown_shape_is_refused():
    with pytest.raises(AssertionError, match="stacked experts"):
        matrices("language.layers.1.strange", (2, 3, 4, 5))
    with pytest.raises(AssertionError, match="whole model"):
        MuonClip([("language.norm.weight", torch.nn.Parameter(torch.ones(3)))], lr=1e-3)


# ------------------------------------------------------------------------------------------------------------ one step

@pytest.mark.parametrize("shape", SHAPES[:3])
def test_update_rms_is_that_of_adamw(shape):
    W, gain = torch.nn.Parameter(torch.zeros(shape)), torch.nn.Parameter(torch.ones(4))
    optimizer = MuonClip([("w", W), ("norm.weight", gain)], lr=1e-2, weight_decay=0.0)
    fill_gradients([W, gain], 0)
    optimizer.step()
    rms = W.detach().square().mean().sqrt().item() / 1e-2
    assert 0.15 < rms < 0.21                                                   # 0.2 if Newton-Schulz were exact
    assert rms == pytest.approx(optimizer.update_rms.item(), rel=1e-3)


def test_three_steps_equal_torch_muon_and_adamw():
    named = {"a": (24, 40), "b": (40, 24), "norm.weight": (24,), "language.embed.weight": (16, 24)}
    ours = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in named.items()}
    theirs = copy.deepcopy(ours)
    optimizer = MuonClip(ours.items(), lr=1e-2, weight_decay=0.1)
    muon = torch.optim.Muon([theirs["a"], theirs["b"]], lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([theirs["norm.weight"], theirs["language.embed.weight"]], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(3):
        for params, optimizers in ((ours, [optimizer]), (theirs, [muon, adamw])):
            fill_gradients(params.values(), step)
            [o.step() for o in optimizers]
    for name in named:
        change = ours[name] - 1, theirs[name] - 1
        assert relative(*change) < (0.02 if name in "ab" else 1e-5), name


def test_adamw_for_everything_is_the_adamw_of_muonclip():
    """For comparisons: betas, epsilon and decay are those of MuonClip's own AdamW part."""
    ours = {name: torch.nn.Parameter(torch.ones(shape)) for name, shape in {"a": (24, 40), "norm.weight": (24,), "language.embed.weight": (16, 24)}.items()}
    theirs = copy.deepcopy(ours)
    pair = ((ours, AdamW(ours.values(), 1e-2, 0.1)), (theirs, MuonClip(theirs.items(), lr=1e-2, weight_decay=0.1)))
    for step in range(3):
        for params, optimizer in pair:
            fill_gradients(params.values(), step)
            optimizer.set_schedule(0.5), optimizer.step()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-7) and not torch.equal(ours[name], torch.ones_like(ours[name])) for name in ours if name != "a")


def test_parameters_without_gradient_stay():
    model = tiny_model()
    before = {name: p.clone() for name, p in model.vision.named_parameters()}
    fill_gradients(model.language.parameters(), 0)
    MuonClip(model.named_parameters(), lr=1e-2).step()
    assert all(torch.equal(before[name], p) for name, p in model.vision.named_parameters())


def test_resume_is_exact():
    def run(model, optimizer, steps):
        for step in steps:
            optimizer.set_schedule(wsd(step, 6, 2, 0.5))
            fill_gradients(model.parameters(), step)
            optimizer.step()
    straight = tiny_model()
    run(straight, MuonClip(straight.named_parameters(), lr=1e-2), range(6))
    first = tiny_model()
    optimizer = MuonClip(first.named_parameters(), lr=1e-2)
    run(first, optimizer, range(3))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = MuonClip(first.named_parameters(), lr=123.0)
    resumed.load_state_dict(torch.load(file))
    run(first, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), first.parameters()))


# ------------------------------------------------------------------------------------------------------------ QK-Clip

def attention_logits(attn, x, monkeypatch):
    """Softmax inputs (B, H, T, T) of one MLA layer on x (B, T, d); leaves attn.max_logits as a training forward does."""
    seen, original = [], language.attention_logits
    monkeypatch.setattr(language, "attention_logits", lambda *args: seen.append(original(*args)) or seen[-1])
    B, T, _ = x.shape
    rotation = language.rope_1d(torch.arange(T).expand(B, T), TINY.language.rope, 50000.0)
    attn(x, language.Context(rotation, language.attention_mask(None, None, T, x), None, None, None))
    monkeypatch.setattr(language, "attention_logits", original)
    return seen[0].detach().tril()


def test_qk_clip_scales_the_logits_of_hot_heads_exactly(monkeypatch):
    model = tiny_model().train()
    x = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(1))
    attentions = [layer.attn for layer in model.language.layers]
    with torch.no_grad():
        [attn.q_b.weight.mul_(1000) for attn in attentions]
        attentions[0].q_b.weight[12:24].mul_(0.01)                             # head 1 of layer 0 stays cold
    before = [attention_logits(attn, x, monkeypatch) for attn in attentions]
    weights = {name: p.clone() for name, p in model.named_parameters()}
    tau = attentions[0].max_logits.max().item() / 3
    gammas = [(tau / attn.max_logits).clamp(max=1) for attn in attentions]
    assert gammas[0][1] == 1 and (gammas[0] < 1).any()
    stats = qk_clip(model, tau)
    assert stats["max_logit"] >= 3 * tau * 0.999 and stats["clip_rate"] == pytest.approx((torch.stack(gammas) < 1).float().mean().item())
    for attn, logits, gamma in zip(attentions, before, gammas):
        after = attention_logits(attn, x, monkeypatch)
        assert torch.allclose(after, logits * gamma[:, None, None], rtol=1e-4, atol=1e-4)
        assert (attn.max_logits <= tau * 1.0001).all()
    edited = {name for name, p in model.named_parameters() if not torch.equal(p, weights[name])}
    assert edited <= {f"language.layers.{i}.attn.{w}.weight" for i in (0, 1) for w in ("q_b", "kv_b")}     # kv_a (k_rope) untouched
    before, gamma = (weights[f"language.layers.0.attn.{name}.weight"] for name in ("q_b", "kv_b")), gammas[0][:, None, None]
    q, kv = ([p.view(3, -1, 16) for p in pair] for pair in zip(before, (attentions[0].q_b.weight, attentions[0].kv_b.weight)))
    for old, new in (q, kv):
        assert torch.allclose(new[:, :8], old[:, :8] * gamma.sqrt())            # W_qc and W_kc share it
    assert torch.allclose(q[1][:, 8:], q[0][:, 8:] * gamma) and torch.equal(kv[1][:, 8:], kv[0][:, 8:])        # W_qr has all of it, V none


def test_qk_clip_below_tau_edits_nothing_and_wants_a_forward_first(monkeypatch):
    model = tiny_model().train()
    with pytest.raises(AssertionError, match="no max_logits"):
        qk_clip(model)
    x = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(1))
    [attention_logits(layer.attn, x, monkeypatch) for layer in model.language.layers]
    before = copy.deepcopy(model.state_dict())
    assert qk_clip(model, 100.0)["clip_rate"] == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ------------------------------------------------------------------------------------------------------------ schedule

def test_wsd():
    factors = [wsd(step, 100, 10, 0.3) for step in range(120)]
    assert factors[0] == 0.1 and factors[9] == 1.0 and set(factors[10:71]) == {1.0}
    assert factors[85] == pytest.approx(0.55) and factors[100] == factors[119] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(factors[10:], factors[11:]))
    assert wsd(99, 100, 0, 0.0) == 1.0
