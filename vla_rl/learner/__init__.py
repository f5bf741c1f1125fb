"""Learning: sample, targets, loss, step, publish; the only importer of accelerate and deepspeed."""
