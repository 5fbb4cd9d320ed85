"""What is learned: dataset rows -> batches and the loss, one file per objective."""
