"""What every test process needs: one thread, no GPU unless it is what is tested, and the slow files first, so that no process ends up waiting
for the other's."""
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))                      # a single file can be run from anywhere
os.environ["OMP_WAIT_POLICY"] = "passive"                                # before torch: a thread that waits leaves its core to the other test process
if not any("test_gpu" in argument for argument in sys.argv) and "PYTEST_XDIST_WORKER" not in os.environ:         # a worker has what its parent set
    os.environ["CUDA_VISIBLE_DEVICES"] = ""                              # bit by bit holds on a CPU only

import pytest
import torch

# transformers replaces torch.linspace while it loads a model, and torch remembers for good which constructors it saw on the first use of a
# device context; seeing one here first keeps `with torch.device("meta")` right for the tests that come after such a load
with torch.device("meta"):
    torch.empty(0)

SLOW = ("test_notebooks", "test_train", "test_release", "test_devices", "test_rl", "test_exercises")       # minutes each on a slow machine


def pytest_configure(config):
    config.option.loadscopereorder = False                               # pytest-xdist would begin with the files of many tests, which are fast


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: SLOW.index(item.module.__name__) if item.module.__name__ in SLOW else len(SLOW))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Two test processes share two cores. Before every test: rl.py and others set the number of threads when a test calls them."""
    torch.set_num_threads(1)
