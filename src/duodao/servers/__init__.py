"""A source that never ends: servers over TCP and HTTP whose handlers are plain functions."""
