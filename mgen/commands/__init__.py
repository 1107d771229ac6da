"""Commands of mgen that are more than a few lines: sweep, doctor."""
