"""What every room uses and which uses no room: registry, paths, settings, devices, randomness, hashing, files."""
