"""Train the embedded models on the synthetic world and write them as ordinary model directories."""
