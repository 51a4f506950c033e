"""Run the service on Ray Serve. No other package imports ray."""
