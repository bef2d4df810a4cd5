"""Defences: each says which training images to remove."""
