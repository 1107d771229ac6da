"""Sweeps: their file and their trials."""
