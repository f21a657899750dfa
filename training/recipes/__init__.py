"""What is learned: the batches, the loss and the validation of each kind of training."""
