"""The complete, transparent life of small language models whose layers share one FFN."""
