"""What a run needs of the machine: its processes, their signals, memory, speed."""
