"""Speed and memory comparisons."""
