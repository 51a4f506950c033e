"""Metrics, traces and the access log, written by gateways and replicas alike."""
