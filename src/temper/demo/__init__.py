"""The demonstration: a small network on real handwritten digits."""
