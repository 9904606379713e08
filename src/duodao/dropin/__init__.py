"""The standard library's own names on Duodao's machinery: a program moves by changing its import lines."""
