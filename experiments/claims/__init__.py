"""One module a reproduced claim."""
