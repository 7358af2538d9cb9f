"""What every room stands on: command line, processes, threads, files, errors."""
