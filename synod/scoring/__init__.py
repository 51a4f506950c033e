"""What `synod score` and `synod replay` do: inputs, the score log, asking in batches, comparing two answers."""
