"""The gateway: validate requests, fan them out to scorers, combine scores. It imports neither torch nor ray."""
