"""Timing and memory."""
