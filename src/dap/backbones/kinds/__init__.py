"""Kinds of backbones, one file each: what a kind taps, how its network is called, and what its pipeline says of itself."""
