"""What `synod score` and `synod replay` do: inputs, the score log, asking a plane in batches, comparing two answers."""
