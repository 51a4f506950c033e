"""Synod's contract: records, codecs and client that reward plane and trainer share."""

__version__ = "0.1.0"
