"""The profile: whose time is whose. The speeds themselves are measured by python -m nanokimi.bench."""
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from nanokimi import bench


def test_backward_time_belongs_to_the_module_that_ran_forward():
    """A tree of events by hand: 60 in a module (10 of them its own), as much again behind it, the optimizer, autograd's own work."""
    def event(name, own, parent=None, number=-1):
        return SimpleNamespace(name=name, self_cpu_time_total=own, cpu_parent=parent, sequence_nr=number)
    forward, backward, step = event("forward", 5), event("backward", 7), event(bench.OPTIMIZER, 20)
    module = event("head", 10, forward)
    engine = [event(f"autograd::engine::evaluate_function: {name}", 1, number=number) for name, number in (("MmBackward0", 4), ("AddBackward0", 5))]
    events = [forward, module, event("aten::mm", 50, module, 4), event("aten::add", 3, forward, 5), backward, *engine,
              event("MmBackward0", 2, engine[0], 4), event("aten::mm", 57, engine[0]), event("aten::add", 4, engine[1]), step, event("aten::mul_", 30, step)]
    shares = bench.by_module(events, ("head",))
    spent = {("forward", "head"): 60, ("forward", bench.REST): 8, ("backward", "head"): 60, ("backward", bench.REST): 5,
             ("", bench.OPTIMIZER): 50, ("", "autograd itself"): 7}
    assert shares == pytest.approx({key: value / sum(spent.values()) for key, value in spent.items()})


def test_the_profiler_gives_what_is_needed_for_that():
    """torch's real events have parents and sequence numbers. The first layer is so large that no busy machine makes the rest take longer."""
    first, second = torch.nn.Linear(1500, 1500), torch.nn.Linear(1500, 2)
    first.forward = bench.recorded(first.forward, "first")
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as prof:
        with record_function("forward"):
            loss = second(first(torch.randn(900, 1500))).sum()
        with record_function("backward"):
            loss.backward()
    shares = bench.by_module(prof.events(), ("first",))
    assert shares["forward", "first"] > 0 and shares["backward", "first"] > shares["backward", bench.REST]
    assert sum(shares.values()) == pytest.approx(1)
