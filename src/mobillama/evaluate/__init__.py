"""Measuring models: the paper's nine benchmarks, any lm-eval task, held-out text, paired comparison."""
