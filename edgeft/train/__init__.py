"""Training: a Dataset and a base model -> an Adapter; one file per objective."""
