"""Readers of files that others write: tables, sequences, weights."""
