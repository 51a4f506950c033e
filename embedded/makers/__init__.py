"""Makers of the embedded models: pictures of the drawn world in, ordinary model directories out."""
