"""Offline reinforcement learning for the Decision Transformer: scores, behaviour policies, data, training."""
