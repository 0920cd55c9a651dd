"""Two processes that share a model, each with samples of its own."""

import polyfuse as pf
import torch
import torch.distributed as dist
from polyfuse import workload
from torch.nn.parallel import DistributedDataParallel

from .tolerance import assert_like_torch

PROCESSES = 2


def train(nn, optim, rank):
    """The parameters after a loop over this process's share of the data."""
    xs, ys = (t[rank::PROCESSES].contiguous() for t in workload.data(torch.float64))
    model = workload.make_model(nn, torch.float64)
    nn.MSELoss()(model(xs), ys).backward()  # it has been fused before it is wrapped
    model.zero_grad()
    wrapped = DistributedDataParallel(model)
    optimizer = optim.Adam(wrapped.parameters(), lr=0.1)
    criterion = nn.MSELoss()
    for _ in range(20):
        optimizer.zero_grad()
        criterion(wrapped(xs), ys).backward()
        optimizer.step()
    with wrapped.no_sync():  # gradients of this process alone
        optimizer.zero_grad()
        criterion(wrapped(xs), ys).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    return [p.detach() for p in model.parameters()], grads


def work(rank, path):
    store = dist.FileStore(path, PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    try:
        found, truth = train(pf.nn, pf.optim, rank), train(torch.nn, torch.optim, rank)
        for these, those in zip(found, truth, strict=True):
            for a, b in zip(these, those, strict=True):
                assert_like_torch(a, b)
        params, grads = (torch.cat([t.reshape(-1) for t in part]) for part in found)
        everyones = [torch.empty_like(params) for _ in range(2 * PROCESSES)]
        dist.all_gather(everyones[:PROCESSES], params)
        dist.all_gather(everyones[PROCESSES:], grads)
        assert torch.equal(everyones[0], everyones[1])
        assert not torch.equal(everyones[2], everyones[3])  # each has seen its own samples
    finally:
        dist.destroy_process_group()


def test_distributed_data_parallel(tmp_path):
    torch.multiprocessing.spawn(work, (str(tmp_path / "store"),), nprocs=PROCESSES)
