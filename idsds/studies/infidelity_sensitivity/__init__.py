"""Infidelity, sensitivity and model quality."""
