"""Scoring: what each client contributed to a round. Importing the package loads nothing; only `utility` needs torch."""
