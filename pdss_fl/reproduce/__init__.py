"""Experiments that repeat every figure that this project states: paired, resumable, one command each."""
