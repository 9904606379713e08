"""Readers of telemetry."""
