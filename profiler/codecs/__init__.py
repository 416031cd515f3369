"""Compression of what crosses the cut: one file a codec."""
