"""What of a row a network is to give: numbers, classes, masked letters."""
