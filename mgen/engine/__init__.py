"""What a run needs beside its steps: processes, shards, memory, speed."""
