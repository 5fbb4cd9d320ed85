"""config.json or a GGUF header -> the card of the model family; the embedded bases; pre-tokenizers.

card = card_for({"architectures": ["LlamaForCausalLM"]})
card.gguf_names("model.layers.3.mlp.up_proj.weight")  # (("blk.3.ffn_up.weight",), None)
"""

from edgeft.models.cards import (
    FOLDER,
    Card,
    Source,
    card_for_gguf,
    cards,
    sources,
)
from edgeft.models.hyperparameters import check_config
from edgeft.models.names import fill, generalize
from edgeft.models.pretokenizers import (
    PreTokenizer,
    flat_parts,
    pretokenizer_json,
    pretokenizer_named,
    pretokenizer_steps,
    pretokenizers,
)
from edgeft.models.shapes import Shape, Sizes, sizes_of, tensor_shapes
from edgeft.models.text_model import (
    TextModel,
    card_for,
    text_model,
    transformers_class,
    transformers_config,
    wrappers,
)
from edgeft.models.weight_names import WeightNames, weight_names

__all__ = [
    "FOLDER",
    "Card",
    "PreTokenizer",
    "Shape",
    "Sizes",
    "Source",
    "TextModel",
    "WeightNames",
    "card_for",
    "card_for_gguf",
    "cards",
    "check_config",
    "fill",
    "flat_parts",
    "generalize",
    "pretokenizer_json",
    "pretokenizer_named",
    "pretokenizer_steps",
    "pretokenizers",
    "sizes_of",
    "sources",
    "tensor_shapes",
    "text_model",
    "transformers_class",
    "transformers_config",
    "weight_names",
    "wrappers",
]
