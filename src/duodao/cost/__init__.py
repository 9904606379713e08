"""What a call costs, measured."""
