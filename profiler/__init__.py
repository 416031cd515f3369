"""Measure a machine under split LoRA fine-tuning and write what was measured as a profile."""

__version__ = "0.1.0"
