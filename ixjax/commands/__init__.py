"""The command line: the only code that reads flags, prints, or ends the process."""
