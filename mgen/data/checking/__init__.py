"""What is looked at before weights load, and what a table leaks."""
