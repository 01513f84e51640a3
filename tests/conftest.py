"""One thread per test process: small kernels on a busy machine get slower with two."""
import torch

torch.set_num_threads(1)
