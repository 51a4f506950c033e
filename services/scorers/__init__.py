"""Reward scorers: one short file each, found through `registry`."""
