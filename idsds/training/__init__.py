"""Recipes, the training loop, predictions and cached checkpoints."""
