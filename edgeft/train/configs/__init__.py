"""Another trainer's YAML (LLaMA-Factory, Axolotl) -> an edgeft TOML, and what it could not carry over.

print(convert(Path("sft.yaml"), Path("run.toml"), "train-qlora", checks).text)
"""

from edgeft.train.configs.convert import Conversion, convert, write_data

__all__ = ["Conversion", "convert", "write_data"]
