"""Fault injection: break a real service under load and count what its callers receive.

python -m benchmarks.faults                      # full counts -> benchmarks/results/faults.json
python -m benchmarks.faults --quick --out FILE   # small counts, as the tests run them
"""
