"""Synod and other ways to serve the same scorers, measured side by side in one run: `make bench-serving`."""
