"""How items and outcomes pass from one side to another."""
