"""The gateway: admit, fan out, gather, combine. Knows neither torch nor ray."""
