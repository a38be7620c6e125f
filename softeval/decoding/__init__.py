"""Questions in, generations out: the decoder, its rows, their noise and what is recorded of them."""
