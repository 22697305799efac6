"""PDSS on Flower: small models learn from a large one's reasoning without showing it their text."""

__version__ = "0.1.0"
