"""Entry points for runs from a checkout."""
