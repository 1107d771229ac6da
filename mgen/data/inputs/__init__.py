"""What of a row a network reads: mutated and aligned sequences, strands and stretches."""
