"""What is timed, one file and one process each: the decoder alone, our loader, and those of others."""
