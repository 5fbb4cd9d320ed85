"""The type of a file -> training whose forward pass computes with the values of that file.

    ship = ShipWeights(model, open_base(folder), "q4_0")     # --ship q4_0
    ship.start()
    ship.update(exact=True)         # after each step: the layers hold the file's values
    ship.facts()["tensors"]         # the hash of each tensor of the file, which the export compares

This is quantization-aware training (arXiv 1712.05877) of LoRA: the file that will be shipped is what
learns. `edgeft.train.lora_function` has the layer.
"""

from edgeft.train.ship.file_tensors import check_file, check_ship, check_type, file_tensors
from edgeft.train.ship.text_windows import plain_text, text_windows

__all__ = ["check_file", "check_ship", "check_type", "file_tensors", "plain_text", "text_windows"]
