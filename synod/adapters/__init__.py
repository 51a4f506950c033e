"""Other trainers' reward calls, answered by a service: `trl`, `verl`, `flow_grpo`. None of those packages is imported.

A score that is missing is never a number: it is None where the caller's protocol has a place for it, else an error
that names the items.
"""
