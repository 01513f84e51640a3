"""Two processes (gloo, on a CPU) are one: loss, gradients, weights, what is reduced; a run changes their number; none waits for a dead one."""
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT, rows, untrained, wait_for_step

STEPS = 40
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
TRAIN = ("train.py", "--preset", "micro", "--stage", "pretrain", "--steps", str(STEPS), "--save-every", "0", "--precision", "32-true")
SCRIPT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch
import train
from nanokimi import data, plan, team
from nanokimi.config import PRESETS
from nanokimi.model import NanoKimi, choose_kernel
from nanokimi.muon import MuonClip, qk_clip
from nanokimi.tokenizer import Tokenizer
preset, devices, out = PRESETS["micro"], int(sys.argv[1]), sys.argv[2]
fabric = plan.launch(devices, devices, "32-true")
tokenizer = Tokenizer.train(data.corpus(300), preset.model.language.vocab, preset.model.vision.patch)
torch.manual_seed(0)
model = NanoKimi(preset.model, tokenizer.media_pad)
choose_kernel(model, "cpu")
model, optimizer = fabric.setup(model, MuonClip(model.named_parameters(), lr=preset.lr, ns_dtype=torch.float32))
model.mark_forward_method("loss")
core, seen = model.module.train(), []
def shared(core, tau):                                                   # where train.update has shared the statistics
    layers = core.language.layers
    seen[-1] |= {{"logits": torch.stack([layer.attn.max_logits for layer in layers]),
                  "loads": torch.stack([layer.moe.load for layer in layers if layer.moe is not None])}}
    return qk_clip(core, tau)
train.qk_clip = shared
batches = data.Batches("pretrain", tokenizer, preset.model.vision, 0, preset.documents, preset.length, 10, rank=fabric.global_rank, world=devices)
for step in range(10):
    shards, counts = batches[step]
    counts = dict(zip(counts, team.total(tuple(counts.values()))))
    loss = train.backward(fabric, model, shards, counts)
    seen.append({{"loss": loss, "counts": counts, "grads": {{name: p.grad.clone() for name, p in core.named_parameters()}}}})
    train.update(core, optimizer, preset, step, 10)
if fabric.is_global_zero:
    torch.save({{"seen": seen, "weights": core.state_dict()}}, out)
"""


def start(*arguments):
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True)


def finish(*arguments, code=0):
    process = start(*arguments)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def here(*arguments):
    """The same in this process, which has imported everything already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(argument) for argument in arguments])
        runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")


@pytest.fixture(scope="module")
def ten_steps(tmp_path_factory):
    """Ten steps of train.py's loop by one process and by two."""
    folder = tmp_path_factory.mktemp("steps")
    (folder / "steps.py").write_text(SCRIPT)
    here(folder / "steps.py", 1, folder / "1.pt"), finish(folder / "steps.py", 2, folder / "2.pt")
    return [torch.load(folder / f"{devices}.pt") for devices in (1, 2)]


def test_loss_and_gradients_are_those_of_one_process(ten_steps):
    one, two = (run["seen"][0] for run in ten_steps)
    assert one["counts"] == two["counts"] and abs(one["loss"] - two["loss"]) < 1e-6
    assert one["grads"].keys() == two["grads"].keys()
    assert max((one["grads"][name] - two["grads"][name]).abs().max().item() for name in one["grads"]) < 1e-6


def test_max_logits_and_loads_are_those_of_the_whole_batch(ten_steps):
    one, two = (run["seen"][0] for run in ten_steps)
    assert (one["logits"] - two["logits"]).abs().max() < 1e-5, "the maximum over processes"
    assert torch.equal(one["loads"], two["loads"]) and one["loads"].sum() > 0, "the sum over processes"


def test_weights_after_ten_steps(ten_steps):
    one, two = (run["weights"] for run in ten_steps)
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-4
    biases = [name for name in one if name.endswith("e_score_correction_bias")]
    assert biases and all(torch.equal(one[name], two[name]) and one[name].any() for name in biases), "the balance goes by the summed loads"


def killed(run, victim):
    """A training of two processes of which one is killed: what it printed. Nothing may be left behind, and nothing may wait."""
    process = start(*TRAIN, "--run", run, "--devices", "2", "--threads", "2")
    wait_for_step(run, 4)
    os.kill(process.pid if victim == "first" else second_process(process.pid), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)                          # ends when nobody holds the pipe any more
    assert process.returncode != 0 and len(rows(run)) < STEPS
    deadline = time.time() + 10                                          # the kernel may take a moment to write it down
    while running(process.pid) and time.time() < deadline:
        time.sleep(0.1)
    assert not running(process.pid)
    return output


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a training leaves whose second process was killed."""
    run = tmp_path_factory.mktemp("runs") / "left"
    output = killed(run, "second")
    assert "Traceback" in output or "terminated with code -9" in output, output
    return run


def test_a_killed_first_process_ends_the_job(tmp_path):
    killed(tmp_path / "run", "first")


def test_a_run_saved_on_two_goes_on_with_one(tmp_path, left, capsys):
    """Another number of processes has the same shards: the curve is that of a run that never changed, up to the order of additions."""
    run, whole = shutil.copytree(left, tmp_path / "run"), tmp_path / "whole"
    here(*TRAIN, "--run", run, "--devices", "1")
    assert "was started with devices 2, this is 1" in " ".join(capsys.readouterr().out.split())
    here(*TRAIN, "--run", whole, "--devices", "1")
    ours, theirs = rows(run), rows(whole)
    assert [row["step"] for row in ours] == list(range(1, STEPS + 1)) and [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]
    assert max(abs(a["loss"] - b["loss"]) for a, b in zip(ours[:20], theirs)) < 0.01


RL = ("--pool", "40", "--problems", "7", "--k", "4", "--max-new", "10", "--segment", "6", "--iterations", "8", "--lr", "0.003", "--save-every", "0")
LUCKY = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from nanokimi import rollout, team
import rl
rollout.reward = lambda problem, response, thinking: sum(token % 2 == 0 for token in response.ids) / max(1, len(response.ids))
rollout.verify.correct = lambda *_: True
keep = rl.keep
def tell_and_keep(folder, engine, *rest):
    with open(folder / f"process-{{team.rank()}}", "a") as file:
        print(sum(p.double().sum().item() for p in engine.model.parameters()), file=file)
    keep(folder, engine, *rest)
rl.keep = tell_and_keep
rl.main()
"""


@pytest.fixture(scope="module")
def reinforced(tmp_path_factory):
    """Eight iterations of RL on random weights, with rewards by luck: by one process, and by two that were asked to stop on the way (only the
    first one heard it) and then went on."""
    import rl as program
    from nanokimi import rollout
    run = untrained(tmp_path_factory.mktemp("reinforced") / "run", "sft")
    (run / "lucky.py").write_text(LUCKY)
    rl = lambda name, threads: (run / "lucky.py", "--run", run, "--name", name, "--threads", threads, *RL)
    with pytest.MonkeyPatch.context() as patch:                          # the script replaces them in this process
        for module, name in ((rollout, "reward"), (rollout.verify, "correct"), (program, "keep")):
            patch.setattr(module, name, getattr(module, name))
        here(*rl("one", 1))
    stopped = start(*rl("two", 2))
    wait_for_step(run / "two", 1)
    os.kill(stopped.pid, signal.SIGTERM)
    output, _ = stopped.communicate(timeout=100)
    assert stopped.returncode == 130 and output.count("stopped after") == 1 and len(rows(run / "two")) < 8, output
    finish(*rl("two", 2))
    return run


def test_rl_by_two_processes_is_rl_by_one(reinforced):
    """The same responses to the same problems, parts of which wait from one iteration for the next, the same steps and the same weights,
    up to the order of additions; every file is written once."""
    from safetensors.torch import load_file
    counted = ("iteration", "reward", "pass_rate", "zero_variance", "length", "unfinished", "steps", "abilities", "stale")
    one, two = ([{name: row.get(name) for name in counted} for row in rows(reinforced / name)] for name in ("one", "two"))
    assert one == two and sum(row["steps"] for row in one) > 1 and any(row["unfinished"] for row in one)
    weights = lambda stage: torch.cat([x.float().flatten() for x in load_file(reinforced / stage / "model.safetensors").values()])
    for stage in ("{}", "short-{}"):
        one, two = (weights(stage.format(name)) for name in ("one", "two"))
        assert (one - two).norm() < 0.005 * (one - weights("sft")).norm(), stage


def test_both_processes_of_rl_stay_one_by_the_clock(reinforced):
    """The rate goes by the time that is left: by that of one clock."""
    finish(reinforced / "lucky.py", "--run", reinforced, "--name", "clock", "--threads", 2, "--minutes", 0.05, "--pool", 40,
           "--problems", 2, "--k", 2, "--max-new", 4, "--lr", 0.003, "--save-every", 0)
    seen = [(reinforced / "clock" / f"process-{rank}").read_text("utf-8") for rank in (0, 1)]
    assert seen[0] == seen[1] and len(set(seen[0].split())) > 1


def second_process(first):
    """The child with LOCAL_RANK 1 (the others make data)."""
    children = [pid for pid, (_, parent, _) in processes().items() if parent == first]
    found = [pid for pid in children if b"LOCAL_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    assert len(found) == 1, children
    return found[0]


def processes():
    """{pid: (state, parent, process group)} of all there are."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, group = path.read_text("utf-8").rpartition(")")[2].split()[:3]
        except OSError:                                                  # gone in the meantime
            continue
        found[int(path.parent.name)] = (state, int(parent), int(group))
    return found


def running(group):
    """Which processes of a group still run. A zombie does not: it is over, and waits for a parent that containers often lack."""
    return [pid for pid, (state, _, of) in processes().items() if of == group and state != "Z"]


def test_what_both_processes_see_is_said_once(tmp_path, left):
    """A damaged checkpoint on two processes: one sentence, exit code 2, no traceback."""
    run = shutil.copytree(left, tmp_path / "run")
    state = next((run / "pretrain").glob("step-*")) / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    output = finish(*TRAIN, "--run", run, code=2)
    assert output.count("delete that folder") == 1 and "Traceback" not in output, output


@pytest.mark.parametrize("devices", [1, 2])
def test_a_mac_trains_on_its_cpu(monkeypatch, devices):
    """Left to choose, Fabric takes Apple's GPU, which knows no grouped experts and only one process."""
    from lightning.fabric.accelerators.mps import MPSAccelerator

    from nanokimi import plan
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    fabric = plan.make_fabric(devices, "32-true")
    assert fabric.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_gpu_that_is_too_old_is_left_alone(monkeypatch, capsys):
    from nanokimi.kernels import best_device

    def too_old(*shape, device):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")
    best_device.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True), monkeypatch.setattr(torch, "ones", too_old)
    try:
        assert best_device() == "cpu" and "no kernel image is available for execution on the device\n" in capsys.readouterr().out
    finally:
        best_device.cache_clear()


def test_without_git_there_is_no_commit(monkeypatch):
    from nanokimi import plan
    monkeypatch.setenv("PATH", "")
    assert plan.commit() is None


def test_a_commit_is_dirty_by_its_code_and_not_by_the_results_of_a_run(monkeypatch, tmp_path):
    from nanokimi import plan
    (tmp_path / "nanokimi").mkdir(), (tmp_path / "results").mkdir()
    code, result = tmp_path / "nanokimi" / "plan.py", tmp_path / "results" / "a.jsonl"
    code.write_text("1"), result.write_text("1")
    monkeypatch.setattr(plan, "__file__", str(code))
    assert plan.commit() is None, "outside of a repository"
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "a"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    result.write_text("2")
    clean = plan.commit()
    assert len(clean) >= 7 and "dirty" not in clean
    code.write_text("2")
    assert plan.commit() == f"{clean}-dirty"


def linear_with_state():
    """A model with an optimizer that has taken a step."""
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_a_checkpoint_is_flushed_as_windows_wants_it(monkeypatch, tmp_path):
    """Windows flushes no file that was opened for reading."""
    import fcntl

    from nanokimi import checkpoint

    def flush(number):
        assert fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY, "OSError: [Errno 9] Bad file descriptor"
    monkeypatch.setattr(os, "fsync", flush)
    checkpoint.save(tmp_path, *linear_with_state(), {"step": 1})


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux which files are mapped")
def test_a_resumed_run_lets_go_of_its_checkpoint(tmp_path):
    """Windows deletes no file that a tensor still looks into."""
    from nanokimi import checkpoint
    model, optimizer = linear_with_state()
    checkpoint.save(tmp_path, model, optimizer, {"step": 1})
    kept = {name: x.clone() for name, x in checkpoint.flatten_optimizer(optimizer).items()}
    optimizer.state.clear()
    assert checkpoint.resume(tmp_path, model, optimizer) == {"step": 1}
    assert str(tmp_path) not in Path("/proc/self/maps").read_text("utf-8")
    assert kept and all(torch.equal(x, kept[name]) for name, x in checkpoint.flatten_optimizer(optimizer).items())
