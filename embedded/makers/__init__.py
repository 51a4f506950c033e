"""Makers of the embedded models: images of the drawn world in, ordinary model directories out."""
