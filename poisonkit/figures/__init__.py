"""Figures and tables of the pages, drawn from records."""
