"""Attacks: each returns a :class:`poisonkit.poison.Poison`."""
