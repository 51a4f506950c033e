"""The proof under fault: faults are injected into a real service under load, and what callers get is counted.

python -m benchmarks.faults                      # full counts -> benchmarks/results/faults.json
python -m benchmarks.faults --quick --out FILE   # small ones, as the tests run them
"""
