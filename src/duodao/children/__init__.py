"""The processes we own: how they are forked, guarded, reaped and stopped."""
