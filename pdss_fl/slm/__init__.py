"""The client's small language model: loading, decoding of rationales, training and evaluation."""
