"""LongBench and InfiniteBench: questions about long texts with their own prompts, answer lengths and metrics."""
