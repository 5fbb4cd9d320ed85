"""How close an artifact's logits are to a reference."""
