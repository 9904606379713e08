"""Tools for tests of programs that use Duodao, and for its own: a clock that obeys, a lane that lies, faults."""
