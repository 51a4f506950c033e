"""Reward functions for other trainers: `trl`, `verl`, `flow_grpo`. None of those packages is imported.

A missing score is never a number: it is None where the caller's protocol allows it, else an error that lists the items.
"""
