"""Duodao's figures beside those of its peers. `make bench`; one file for each family of scenarios."""
