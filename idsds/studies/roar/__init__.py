"""ROAR and KAR: nets retrained on modified images."""
