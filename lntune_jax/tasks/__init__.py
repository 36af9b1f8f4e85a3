"""What can be trained: a task is one file."""
