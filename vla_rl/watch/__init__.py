"""The live page of runs: a server on this machine alone that reads their folders and writes nothing."""
