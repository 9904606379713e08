"""Where a call runs."""
