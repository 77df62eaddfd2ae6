"""Speed, CPU and memory of a whole stack, measured. `make bench` runs it and prints a table."""
