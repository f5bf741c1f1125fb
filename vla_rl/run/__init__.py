"""Steps from a recipe to a running cell: the plan, the shared memory, the processes, the run's folder."""
