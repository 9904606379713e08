"""Duodao: write plain functions; it runs them on any lane."""
