"""The table of claims: what the sources say, how we ask the same at this size, and what would count as a yes. Data only.

Written down before the arms ran (comparisons are fixed beforehand). Every arm names what it changes and nothing else; budgets are
the same for every arm of a claim. Sources by their sections: K2.5 = arXiv 2602.02276, k1.5 = 2501.12599, K2 = 2507.20534, Moonlight =
2502.16982.
"""
from dataclasses import dataclass, field

CLIP_ROWS = ("direction", "appear", "order")
DOCUMENT_ROWS = ("caption", "count", "name", *CLIP_ROWS, "ground", "ocr", "capital", "arithmetic", "scene_text")

# metric: (how it is measured: nanokimi/arms.py, rows of the exam). exact, nats: teacher-forced in the pre-training format; chat: verifier's
# score in chat with thinking; told: nats that the right picture saves in chat; bits: of held-out encyclopedia text; log: one number a training
METRICS = {
    "names in clips that no clip showed": ("exact", ("clip_name_unshown",)),
    "loss on those names": ("nats", ("clip_name_unshown",)),
    "names in pictures": ("exact", ("name",)),
    "clips, exact": ("exact", CLIP_ROWS),
    "clips, loss": ("nats", CLIP_ROWS),
    "pictures, exact": ("exact", ("caption", "count", "name", "ocr")),
    "pictures, loss": ("nats", ("caption", "count", "name", "ocr")),
    "text, exact": ("exact", ("arithmetic", "scene_text", "capital")),
    "text, loss": ("nats", ("arithmetic", "scene_text", "capital")),
    "all rows, exact": ("exact", DOCUMENT_ROWS),
    "all rows, loss": ("nats", DOCUMENT_ROWS),
    "largest attention logit": ("log", ("max_logit",)),
    "pictures in chat": ("chat", ("chat_picture",)),
    "what a picture tells in chat, nats": ("told", ("chat_picture",)),
    "clips in chat": ("chat", CLIP_ROWS),
    "text in chat": ("chat", ("arithmetic", "scene_text", "tool_text")),
    "scenes in words (twins of pictures)": ("chat", ("scene_text",)),
    "sums (no twin)": ("chat", ("arithmetic",)),
    "capitals (no twin)": ("chat", ("capital",)),
    "held-out prose, bits per byte": ("bits", ("wiki",)),
    "pictures that only their pixels answer": ("chat", ("tool_picture",)),
    "what RL trains, in chat": ("chat", ("caption", "count", "name", *CLIP_ROWS, "ocr", "chat_picture", "arithmetic", "scene_text")),
    "pictures and clips in chat": ("chat", ("caption", "count", "name", *CLIP_ROWS, "ocr", "chat_picture")),
    "training reward, mean over iterations": ("log", ("reward",)),
    "rollout seconds a response": ("log", ("rollout",)),
    "tokens a response": ("log", ("response",)),
}


@dataclass(frozen=True)
class Compare:
    """metric of `arm` less metric of `against`. expect: what would reproduce the claim, "> 0", "< 0", "> -0.02"; "" = a finding without a
    side. The whole 95 % interval must lie there."""
    metric: str
    arm: str
    against: str
    expect: str = ""


@dataclass(frozen=True)
class Known:
    """A row of results/FILE less another row of it ("" = less nothing). What `expect` means: Compare."""
    file: str
    row: str
    against: str = ""
    expect: str = ""


@dataclass(frozen=True)
class Claim:
    """One row of docs/CLAIMS.md. shared: settings of all its arms; arms: what each changes; rates: learning rates, one of which is chosen
    for every arm on val with seed 0; problems: of a row of the exam; minutes: of one core for an arm and seed, as estimated."""
    name: str
    says: str
    source: str
    reported: str
    experiment: str
    shared: dict = field(default_factory=dict)
    arms: dict = field(default_factory=dict)
    compares: tuple = ()
    known: tuple = ()
    rates: tuple = ()
    choose_by: str = ""             # the metric that the rate is chosen by
    problems: int = 500
    minutes: float = 0


NAMES = {"album": 0.45, "naming": 0.20, "events": 0.15, "clip": 0.20}    # pictures and clips of things with names
QUESTIONS_MIX = {"album": 0.25, "caption": 0.15, "scene": 0.20, "naming": 0.10, "scene_text": 0.20, "category": 0.10}
SHORT = {"documents": 24, "steps": 200}                                   # of every kind; eleven rows are asked, so 200 problems each
RL = {"iterations": 40, "problems": 32, "step-problems": 16, "pool": 600}
CURATED = RL | {"iterations": 36, "pool": 200, "curate": True}            # as long as the others: a pool is sampled 18 times before it is used

CLAIMS = [
    Claim("nplus1-encoder", "one encoder for pictures and clips carries names over to clips", "K2.5 4.2",
          "all weights of MoonViT-3D are shared by pictures and clips; four frames become as many tokens as one (no ablation printed)",
          "names that training shows in pictures and in no clip are asked about in clips; encoder shared, a second one for clips, or every "
          "frame a picture of its own. All arms read the same documents; frames as pictures take more tokens",
          shared={"mix": NAMES, "length": 768, "documents": 24, "steps": 150, "lr": 9e-3},
          arms={"shared": {}, "separate": {"encoders": 2}, "frames": {"frames": 1}},
          compares=(Compare("names in clips that no clip showed", "shared", "separate", "> 0"),
                    Compare("loss on those names", "shared", "separate", "< 0"),
                    Compare("names in pictures", "shared", "separate"),
                    Compare("clips, exact", "shared", "frames", "> 0"),
                    Compare("names in clips that no clip showed", "shared", "frames", "> -0.02")),
          known=(Known("nano", "nplus1_name_clip", "nplus1_name_picture", "> -0.1"),), minutes=5),
    Claim("nplus1-share", "few clips are enough, and pictures are not hurt by them", "K2.5 4.2",
          "pictures and clips train one encoder together (the share of clips is not disclosed)",
          "0, 1, 5 or 20 % of the documents are clips",
          shared={"mix": NAMES, "documents": 24, "steps": 360, "lr": 9e-3},
          arms={"none": {"clips": 0.0}, "1 %": {"clips": 0.01}, "5 %": {"clips": 0.05}, "20 %": {"clips": 0.2}},
          compares=(Compare("names in clips that no clip showed", "1 %", "none"),
                    Compare("loss on those names", "1 %", "none"), Compare("loss on those names", "5 %", "none", "< 0"),
                    Compare("names in clips that no clip showed", "5 %", "none", "> 0"),
                    Compare("names in clips that no clip showed", "5 %", "20 %", "> -0.02"),
                    Compare("names in pictures", "20 %", "none", "> -0.02"),
                    Compare("names in pictures", "1 %", "none"), Compare("names in pictures", "5 %", "none")), minutes=4),
    Claim("zero-vision", "text-only SFT switches on chat about pictures", "K2.5 2.2",
          "SFT on text alone activates visual reasoning, as joint pre-training has aligned the modalities",
          "pictures in chat before and after the cold start, against pictures of other problems, and captions before and after",
          known=(Known("nano", "zv_format_after", "zv_format_before", "> 0"), Known("nano", "zv_acc", "zv_acc_blind", "> 0"),
                 Known("nano", "caption_f1_after", "caption_f1", "> -0.05"))),
    Claim("zero-vision-sft", "text-only SFT generalises better than SFT on text and pictures", "K2.5 2.2",
          "visual trajectories in SFT hurt generalisation; text-vision SFT was much worse on visual agentic tasks",
          "from the same pre-trained run, chats on text alone or half of them on pictures, equally many tokens; clips are in neither",
          shared={"steps": 0, "sft_steps": 110, "sft_tokens": 4800},
          arms={"text": {}, "both": {"pictures": 0.5}},
          compares=(Compare("clips in chat", "text", "both", "> 0"), Compare("pictures in chat", "text", "both"),
                    Compare("text in chat", "text", "both", "> -0.02")), problems=200, minutes=4),
    Claim("zero-vision-questions", "zero-vision SFT needs pre-training that binds pictures to questions", "K2.5 2.2",
          "joint pre-training aligns vision and text well enough for text-only SFT (what in it does so is not said)",
          "0, 10 or 30 % of the pre-training documents ask questions about a picture; then the same text-only cold start",
          shared={"mix": QUESTIONS_MIX, "documents": 24, "steps": 280, "lr": 9e-3, "sft_steps": 60},
          arms={"none": {"questions": 0.0}, "10 %": {"questions": 0.1}, "30 %": {"questions": 0.3}},
          compares=(Compare("pictures in chat", "10 %", "none", "> 0"), Compare("pictures in chat", "30 %", "none", "> 0"),
                    Compare("what a picture tells in chat, nats", "10 %", "none", "> 0"),
                    Compare("what a picture tells in chat, nats", "30 %", "none", "> 0"),
                    Compare("names in pictures", "30 %", "none")), minutes=4.5),
    Claim("fusion", "early fusion at a low vision share beats mid and late", "K2.5 2.1, Table 1",
          "vision from 0 / 50 / 80 % of training at 10 / 20 / 50 % of the tokens: early is best in vision (OCR 65.7 / 64.1 / 61.5) and "
          "in text knowledge (45.5 / 43.9 / 43.1)",
          "pictures and clips are 16 % of all documents in every arm: 16 % from the start, 32 % from half, or 80 % from 80 % of the steps; "
          "the path from easy to hard is walked by what there is to see. Equally many documents of each kind",
          shared={"vision": 0.16, "documents": 24, "steps": 280},
          arms={"early": {}, "mid": {"vision_from": 0.5}, "late": {"vision_from": 0.8}},
          compares=(Compare("pictures, loss", "early", "mid", "< 0"), Compare("pictures, loss", "early", "late", "< 0"),
                    Compare("clips, loss", "early", "late", "< 0"),
                    Compare("text, loss", "early", "mid", "< 0"), Compare("text, loss", "early", "late", "< 0"),
                    Compare("pictures, exact", "early", "late"), Compare("text, exact", "early", "late")), problems=200, minutes=4.5),
    Claim("optimizer", "Muon learns more from the same data than AdamW", "Moonlight 2 and 3.2, K2 2.1",
          "Muon reaches AdamW's loss with about 52 % of its FLOPs",
          "the same steps of the same documents, both with QK-Clip (tau 30); each optimizer's learning rate is the best of four on val",
          shared=SHORT, arms={"muon": {}, "adamw": {"optimizer": "adamw"}}, rates=(1e-3, 3e-3, 9e-3, 2.7e-2), choose_by="all rows, loss",
          compares=(Compare("all rows, loss", "muon", "adamw", "< 0"), Compare("all rows, exact", "muon", "adamw", "> 0"),
                    Compare("largest attention logit", "muon", "adamw")), problems=200, minutes=4.5),
    Claim("qk-clip", "QK-Clip bounds attention logits and does no harm", "K2 2.1 and App. D",
          "without it, logits above 1000 in a 9B/53B model; a small test with tau 30: no loss harmed",
          "no clip, tau 30 (of the small test), tau 10 (so that it clips more), at a rate at which logits grow",
          shared=SHORT | {"lr": 9e-3}, arms={"off": {"qk_clip": 1e9}, "tau 30": {}, "tau 10": {"qk_clip": 10.0}},
          compares=(Compare("largest attention logit", "tau 30", "off"), Compare("largest attention logit", "tau 10", "off", "< 0"),
                    Compare("all rows, loss", "tau 30", "off", "< 0.01"),
                    Compare("all rows, loss", "tau 10", "off", "< 0.01")), problems=200, minutes=4.5),
    Claim("vision-rl", "RL on pictures lifts text", "K2.5 2.3, Table 2",
          "after vision RL: MMLU-Pro 84.7 to 86.4, GPQA-Diamond 84.3 to 86.4, LongBench v2 56.7 to 58.9",
          "RL on problems of which all, half or none are on pictures and clips, from the zero-vision start; all, from a start whose "
          "SFT had pictures (zero-vision-sft, both). Rows of rl.json: joint RL, 60 % on pictures and clips",
          shared={"steps": 0, "rl": RL},
          arms={"start": {"rl": {}}, "text": {"rl": RL | {"visual": 0.0}}, "half": {"rl": RL | {"visual": 0.5}},
                "vision": {"rl": RL | {"visual": 1.0}}, "start, both": {"start": "zero-vision-sft/both", "rl": {}},
                "vision, both": {"start": "zero-vision-sft/both", "rl": RL | {"visual": 1.0}}},
          compares=(Compare("pictures and clips in chat", "vision", "start", "> 0"),
                    Compare("scenes in words (twins of pictures)", "vision", "start", "> 0"),
                    Compare("sums (no twin)", "vision", "start", "> 0"), Compare("capitals (no twin)", "vision", "start", "> 0"),
                    Compare("held-out prose, bits per byte", "vision", "start"),
                    Compare("scenes in words (twins of pictures)", "half", "text"), Compare("sums (no twin)", "half", "text"),
                    Compare("pictures and clips in chat", "half", "vision"),
                    Compare("scenes in words (twins of pictures)", "vision, both", "start, both"),
                    Compare("sums (no twin)", "vision, both", "start, both"), Compare("capitals (no twin)", "vision, both", "start, both"),
                    Compare("held-out prose, bits per byte", "vision, both", "start, both"),
                    Compare("pictures and clips in chat", "vision", "vision, both")),
          known=(Known("rl", "rl_scene_text", "sft_scene_text"), Known("rl", "rl_arithmetic", "sft_arithmetic")), problems=200, minutes=4),
    Claim("objectives", "mirror descent learns faster than ReST; its regulariser stands stale samples",
          "k1.5 2.3.2 and Fig. 10, K2.5 4.4.2",
          "k1.5 against ReST at step 48: total about 0.65 against 0.59, MATH500 about 0.90 against 0.80 (GRPO is not compared there); Kimi K3's "
          "report (arXiv 2607.24653, 4.1.2) credits a regularisation by token for stale data; that it is tau's term of K2.5's Eq. 1 is our inference",
          "K2.5's, k1.5's, ReST's and GRPO's objective, on fresh responses and on those of four iterations ago, all at 3e-4, which "
          "each of the eight preferred to 1e-4 on val (from an older start)",
          shared={"steps": 0, "rl": RL | {"lr": 3e-4}},
          arms={f"{name}{', stale' if stale else ''}": {"rl": RL | {"lr": 3e-4, "objective": name} | ({"stale": stale} if stale else {})}
                for stale in (0, 4) for name in ("k25", "k15", "rest", "grpo")},
          compares=tuple(Compare(metric, f"{ours}{stale}", f"{other}{stale}", "> 0" if other == "rest" else "")
                         for stale in ("", ", stale") for ours in ("k25", "k15") for other in ("rest", "grpo")
                         for metric in ("what RL trains, in chat", "training reward, mean over iterations")), problems=200, minutes=4),
    Claim("curriculum", "easy problems first, then those that fail, beat uniform sampling", "k1.5 2.3.4, Fig. 9",
          "uniform and curriculum are equal until the switch at iteration 24; then about 0.61 against 0.555",
          "curated problems: drawn uniformly; let in by difficulty over the first half; and also in proportion to 1 - success",
          shared={"steps": 0, "rl": CURATED},
          arms={"uniform": {"rl": CURATED | {"uniform": True}}, "curriculum": {"rl": CURATED | {"uniform": True, "curriculum": 0.5}},
                "both": {"rl": CURATED | {"curriculum": 0.5}}},
          compares=(Compare("what RL trains, in chat", "curriculum", "uniform", "> 0"),
                    Compare("what RL trains, in chat", "both", "uniform", "> 0")), problems=200, minutes=5),
    Claim("partial", "partial rollouts save time and cost nothing", "k1.5 2.6.2",
          "responses longer than an iteration's budget of tokens go on in the next one; only the newest piece is sampled anew (no numbers)",
          "at most 64 or 24 tokens of a response an iteration, or no limit (one response in ten is longer than 55 tokens, half are longer than 22); "
          "equally many problems are under way, so that fewer are begun",
          shared={"steps": 0, "rl": RL}, arms={"whole": {}, "64": {"rl": RL | {"segment": 64}}, "24": {"rl": RL | {"segment": 24}}},
          compares=(Compare("rollout seconds a response", "64", "whole", "< 0"), Compare("what RL trains, in chat", "64", "whole", "> -0.02"),
                    Compare("tokens a response", "64", "whole"), Compare("rollout seconds a response", "24", "whole"),
                    Compare("what RL trains, in chat", "24", "whole")), problems=200, minutes=3.5),
    Claim("flywheel", "successes of RL, taught to the start, make later RL better", "K2.5 2.3",
          "successful trajectories are recycled as RFT data for later joint RL (no numbers)",
          "48 iterations of RL, or 16, supervised learning of the start on what they solve of 512 problems sampled once more, 16 from there: equally "
          "many samples",
          shared={"steps": 0, "rl": RL},
          arms={"plain": {"rl": RL | {"iterations": 48}}, "flywheel": {"rl": RL | {"iterations": 32, "flywheel": True}}},
          compares=(Compare("what RL trains, in chat", "flywheel", "plain", "> 0"),), problems=200, minutes=4.5),
    Claim("tools", "Python sees what the eye does not", "K2.5 2.2",
          "pictures are handled by code: crop, binarise, count, measure (no comparison with the eye printed)",
          "pictures that only their pixels can answer: a cold start that calls Python, on text alone, against one half of whose "
          "chats are about such pictures, with their answers, and whose encoder learns, too, asked without Python; equally many tokens. "
          "rl.json: one model after RL, asked both ways; by eye is a floor there, as nobody taught it to do without",
          shared={"steps": 0, "sft_steps": 120, "sft_tokens": 4800}, arms={"Python": {}, "eyes": {"eyes": 0.5}},
          compares=(Compare("pictures that only their pixels answer", "Python", "eyes", "> 0"),),
          known=(Known("rl", "rl_tool_solved", "rl_tool_by_eye"),), minutes=4),
    Claim("long2short", "the same answers in fewer tokens", "k1.5 2.4, Fig. 7",
          "long2short RL is the most token-efficient, then DPO and merging: AIME 60.8 at 3,272 tokens",
          "five ways from a long-thinking model to a short one, accuracy of each against the long one's and a brief one's",
          known=(*(Known("long2short", f"l2s-{name}_vs_long", "", "> -0.02") for name in ("merge", "shortest", "dpo", "rl", "toggle")),
                 Known("long2short", "l2s-rl_vs_brief", "", "> 0"), Known("long2short", "l2s_token_saving", "", "> 0"))),
    Claim("toggle", "a budget that comes and goes keeps the gain from more tokens", "K2.5 4.4.2, Eq. 2",
          "25 to 30 % fewer tokens at negligible loss; a rigid budget stops models from using larger ones",
          "what more tokens give to Toggle's model, less what they give to one under a rigid budget",
          known=(Known("long2short", "toggle_lift_gap", "", "> 0"), Known("long2short", "l2s-toggle_vs_long", "", "> -0.02"))),
    Claim("axb", "skills that were never trained together combine", "K2.5 2.2 (our question)",
          "text and vision enhance each other after joint training (not measured like this)",
          "flag picture to capital: flags are named from pictures, capitals told in text only; picture and clip to drawing program likewise. As a "
          "share of what both halves would give; guessing one of 48 capitals is 0.02",
          known=(Known("nano", "axb_capital_direct", "", "> 0.1"), Known("nano", "axb_capital_thinking", "", "> 0.1"),
                 Known("nano", "axb_program", "", "> 0.1"), Known("nano", "axb_clip_program", "", "> 0.1"))),
]
BY_NAME = {claim.name: claim for claim in CLAIMS}
