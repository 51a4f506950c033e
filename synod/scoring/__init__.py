"""`synod score` and `synod replay`: read inputs, score in batches, write a log, compare results."""
