"""What a recipe leaves to `auto`: the layer in whose features images are compared, and the scale of the guidance.

Both are chosen from real training images and a handful of samples. No network is trained and no test image is read.
"""
