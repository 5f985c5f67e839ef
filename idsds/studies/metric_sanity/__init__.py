"""Which metrics find a known truth."""
