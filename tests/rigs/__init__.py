"""Emulated hardware, each at the boundary where the real one is met (a C library, the kernel's files)."""
