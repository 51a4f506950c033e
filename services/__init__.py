"""The reward service: reward models as Ray Serve deployments behind one batched gateway."""
