"""What crosses process boundaries: shared arrays, shared weights, the weight mailbox."""
