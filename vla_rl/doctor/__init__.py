"""What must hold on a machine before a run can be trusted, one small check each."""
