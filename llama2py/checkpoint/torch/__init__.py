"""Files of ``torch.save``, read without PyTorch and without running code from the file."""
