"""Synod's contract: records, codecs and client that reward service and trainer share."""

__version__ = "0.1.0"
