"""Compare Synod with other servers of the same scorers, in one run: `make bench-serving`."""
