"""Several processes that work as one: who takes which share, and what they tell each other. With one process all of it is nothing.

plan.launch starts them (two, where there are two cores: small kernels leave threads waiting); what they exchange goes through
torch.distributed. train.py gives each the shards of a step, rl.py gives each a share of the problems.
"""
import torch
import torch.distributed as dist


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 writes the files and speaks."""
    return dist.get_rank() if size() > 1 else 0


def share(things: list) -> list:
    """What this process works on."""
    return things[rank()::size()]


def gather(thing) -> list:
    """What every process has, by rank: anything that can be pickled."""
    everyones = [thing] * size()
    if size() > 1:
        dist.all_gather_object(everyones, thing)
    return everyones


def total(numbers: tuple) -> list:
    """Each of the numbers, summed over all processes."""
    return [sum(column) for column in zip(*gather(numbers))]


def anyone(asked: bool) -> bool:
    """Whether any process says yes."""
    return any(gather(asked))


def meet() -> None:
    """Waits until all are here."""
    if size() > 1:
        dist.barrier()


def once(write, *arguments) -> None:
    """One process writes, and all go on when it is written."""
    if rank() == 0:
        write(*arguments)
    meet()


def sum_gradients(parameters) -> None:
    """Adds up everyone's gradients. What has none in any process keeps none: the optimizer leaves it alone."""
    if size() == 1:
        return
    parameters = [p for p in parameters if p.requires_grad]
    somewhere = torch.tensor([float(p.grad is not None) for p in parameters])
    dist.all_reduce(somewhere)
    learned = [p for p, count in zip(parameters, somewhere.tolist()) if count]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learned])
    dist.all_reduce(flat)
    for p, part in zip(learned, flat.split([p.numel() for p in learned])):
        p.grad = part.view_as(p)


def share_statistics(language) -> None:
    """Max logits (K2 Alg. 1 wants the maximum over the whole batch) and expert loads (their sum), over processes; one that had nothing to
    do in this step has seen none."""
    if size() == 1:
        return
    device = language.head.weight.device
    for layer in language.layers:
        if layer.attn.max_logits is None:
            layer.attn.max_logits = torch.full((layer.attn.heads,), -torch.inf, device=device)
        dist.all_reduce(layer.attn.max_logits, op=dist.ReduceOp.MAX)
        if layer.moe is not None:
            if layer.moe.load is None:
                layer.moe.load = torch.zeros(layer.moe.cfg.experts, device=device)
            dist.all_reduce(layer.moe.load)
