"""GenEval: object detection, colours, and rules (Ghosh et al. 2023)."""
