"""The reward plane: reward models as Ray Serve deployments behind one batched gateway."""
