"""Training an encoder-decoder on public data: what ``pdss train-encoder-decoder`` does, out of every run's reach."""
