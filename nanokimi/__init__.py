"""nanokimi: Kimi K2.5 and k1.5, vision, video and reinforcement learning included, small enough to read."""
import os

# A CPU's matmul library compiles a kernel per shape and keeps 1,024 of them; batches of mixed sizes need more. torch reads this when it
# first multiplies.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
