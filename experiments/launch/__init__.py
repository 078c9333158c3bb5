"""Templates that start one program on many machines, and a page about each: see README.md."""
