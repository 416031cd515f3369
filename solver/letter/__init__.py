"""The letter's simulation run again, and each of its claims tested."""
