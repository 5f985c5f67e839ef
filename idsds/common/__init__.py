"""Tools that every other package uses and that depend on none of them: registry, paths, settings, devices, randomness, hashing, files."""
