"""From logits to text: sampling, stopping, streams and batches."""
