"""Data that crosses process boundaries: shared arrays, shared weights, the weight mailbox."""
