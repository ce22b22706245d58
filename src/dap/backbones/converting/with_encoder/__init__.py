"""Checkpoints of models that need an encoder of transformers beside them, which their files do not hold: PixArt and REG."""
