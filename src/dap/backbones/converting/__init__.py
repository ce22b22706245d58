"""Weights as their authors publish them, written as diffusers folders."""
