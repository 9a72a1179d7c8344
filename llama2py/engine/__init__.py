"""What computes logits: the C engine, the NumPy reference, and sessions on top of either."""
