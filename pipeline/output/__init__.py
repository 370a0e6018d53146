"""Everything that leaves the process: lines, bars, files, checkpoints."""
