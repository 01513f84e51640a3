"""One thread per test process: small kernels on a busy machine get slower with two."""
import torch

torch.set_num_threads(1)

import torch

# transformers replaces torch.linspace while it loads a model, and torch remembers for good which constructors it saw on the first use of a
# device context; seeing one here first keeps `with torch.device("meta")` right for the tests that come after such a load
with torch.device("meta"):
    torch.empty(0)
