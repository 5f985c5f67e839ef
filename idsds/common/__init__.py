"""Used by every room, and using none: registry, paths, settings, devices, randomness, hashing, files."""
