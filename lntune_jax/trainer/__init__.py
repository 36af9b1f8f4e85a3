"""The loop that the command line runs."""
