"""nanokimi: Kimi K2.5 and k1.5, vision, video and reinforcement learning included, small enough to read."""
