"""The engine: what runs when, in which order, and what runs again."""
